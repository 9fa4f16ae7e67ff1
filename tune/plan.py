"""A sweep before it starts: its settings, and the trials that follow from them, checked."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import RunConfig
from acontrol.errors import UserError
from tune import space as spaces
from tune.objective import Name, choose
from tune.space import Choice, Space, Value

DEFAULT_TRIALS = 12
DRAWINGS = 8  # Held-out defects that a validation draws, unless the config says how many.
VALIDATIONS = 6  # In a trial's course under ASHA, unless the config says how often.


class SweepConfig(RunConfig):
    """A sweep: the run that its trials start from, and how they differ."""

    trials: int | None = Field(
        None, ge=1, description="Trials in all; by default 12, or the whole grid."
    )
    space: tuple[str, ...] = Field(
        (),
        description="What to search, on top of the default: KEY=1,3,5 or KEY=0.5:1.5 or "
        "KEY=log:1e-5:1e-3; KEY=3 fixes a default one.",
    )
    space_file: str | None = Field(None, description="The same in a JSON file.")
    default_space: bool = Field(
        True, description="Search gamma, T_g, alpha and the dropout rates too."
    )
    search: str = Field(
        "random",
        description="random, grid, or any searcher of Ray Tune whose package is installed, as "
        "optuna.",
    )
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="Whether trials that fall behind end early."
    )
    reduction: int = Field(
        3, ge=2, description="ASHA goes on with one trial in this many at each of its rungs."
    )
    objective: Name | None = Field(
        None,
        description="What trials are ranked by; by default validation_loss, or "
        "guided_agreement where the loss cannot judge what is searched.",
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Trials at a time; by default what the cluster has room for."
    )
    retry_failed: bool = Field(
        False, description="Give failed trials of this sweep another go."
    )
    dry_run: bool = Field(False, description="Print what would be searched; change nothing.")


class Plan:
    """What a sweep's settings come to, checked.

    Attributes:
        config: The settings.
        run: What trials start from, with fixed values put in.
        space: What differs among them.
        objective: What they are ranked by.
        trials: How many there are.
        notes: What the user should know about these.
    """

    def __init__(self, config: SweepConfig):
        """Settle objective, space and trials.

        Raises:
            UserError: If something about them must be put right.
        """
        self.config = config
        run = config.run
        named = spaces.read_file(Path(config.space_file)) if config.space_file else {}
        named |= spaces.read_words(config.space)
        grid = config.search == "grid"
        defaults = _default_space(run, grid) if config.default_space else {}
        self.objective, space, self.notes = choose(config.objective, named, defaults)
        fixed: dict[str, Value] = {
            key: domain.values[0]
            for key, domain in space.items()
            if isinstance(domain, Choice) and len(domain.values) == 1
        }
        self.space: Space = {key: one for key, one in space.items() if key not in fixed}
        spaces.check(run, {key: space[key] for key in fixed} | self.space)
        if not self.space:
            raise UserError("nothing to search: every key of the space has one value")
        self.run = _validated(run.with_values(fixed), config)
        self.trials = _grid_size(self.space, config.trials) if grid else config.trials
        self.trials = self.trials or DEFAULT_TRIALS

    def describe(self) -> list[str]:
        """The lines of --dry-run."""
        lines = [f"{key}: {words}" for key, words in spaces.in_words(self.space).items()]
        every = self.run.validation.every
        return [
            *lines,
            f"trials: {self.trials} by {self.config.search} search, scheduler "
            f"{self.config.scheduler}, each of {self.run.optim.steps} steps",
            f"objective: {self.objective}, every {every} steps; each validation draws "
            f"{self.run.validation.drawings} held-out defects",
            "dry run: nothing was changed",
        ]


def _default_space(run: RunConfig, grid: bool) -> Space:
    space = spaces.default_space(run)
    if not grid:
        return space
    lists: Space = {key: one for key, one in space.items() if isinstance(one, Choice)}
    return {"sga.scale": Choice(values=(0.5, 1.0, 1.5)), **lists}


def _grid_size(space: Space, asked: int | None) -> int:
    size = 1
    for key, domain in space.items():
        if not isinstance(domain, Choice):
            raise UserError(f"--search grid needs lists: {key} is a range, give it values")
        size *= len(domain.values)
    if asked not in (None, size):
        raise UserError(
            f"the grid has {size} trials, not {asked}: leave out --trials, or shorten its lists"
        )
    return size


def _validated(run: RunConfig, config: SweepConfig) -> RunConfig:
    """The run, validated as often as the scheduler looks, with a checkpoint each time."""
    parts = VALIDATIONS if config.scheduler == "asha" else 1
    every = run.validation.every or -(-run.optim.steps // parts)
    validation = run.validation.model_copy(
        update={"every": every, "drawings": run.validation.drawings or DRAWINGS}
    )
    return run.model_copy(
        update={
            "validation": validation,
            "checkpoint": run.checkpoint.model_copy(update={"every": every}),
            "samples": run.samples.model_copy(update={"every": 0}),
        }
    )
