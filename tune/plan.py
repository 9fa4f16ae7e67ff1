"""A sweep's settings, and the plan of trials that follows from them."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.messages import counted
from tune import space as spaces
from tune.objective import Name, choose
from tune.space import Choice, Space, Value

DEFAULT_TRIALS = 12
DRAWINGS = 8  # Held-out defects that a validation generates, unless the config sets it.
VALIDATIONS = 6  # Per trial under ASHA, unless the config sets validation.every.


class SweepConfig(RunConfig):
    """Settings of a sweep: the run that its trials start from, and how they differ."""

    trials: int | None = Field(
        None, ge=1, description="Number of trials; by default 12, or the whole grid."
    )
    space: tuple[str, ...] = Field(
        (),
        description="Search space, on top of the default: KEY=1,3,5 or KEY=0.5:1.5 or "
        "KEY=log:1e-5:1e-3; KEY=3 fixes a default one.",
    )
    space_file: str | None = Field(None, description="The same in a JSON file.")
    default_space: bool = Field(
        True, description="Search gamma, T_g, alpha and the dropout rates too."
    )
    search: str = Field(
        "random",
        description="random, grid, or a searcher of Ray Tune with its package installed, such "
        "as optuna.",
    )
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="Whether poor trials are stopped early."
    )
    reduction: int = Field(
        3, ge=2, description="ASHA keeps one trial in this many at each rung."
    )
    objective: Name | None = Field(
        None,
        description="Metric that ranks trials; by default validation_loss, or "
        "guided_agreement where the loss cannot rank what is searched.",
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Concurrent trials; by default as many as fit the cluster."
    )
    retry_failed: bool = Field(False, description="Retry failed trials of this sweep.")
    dry_run: bool = Field(False, description="Print what would be searched; change nothing.")


class Plan:
    """The validated plan of a sweep.

    Attributes:
        config: The settings.
        run: The run that trials start from, with the fixed values.
        space: The search space.
        objective: The metric that ranks trials.
        trials: Number of trials.
        notes: Lines to print about the objective and the space.
    """

    def __init__(self, config: SweepConfig):
        """Settle objective, space and trials.

        Raises:
            UserError: If the settings do not fit together.
        """
        self.config = config
        run = config.run
        requested = spaces.read_file(Path(config.space_file)) if config.space_file else {}
        requested |= spaces.read_words(config.space)
        grid = config.search == "grid"
        defaults = _default_space(run, grid) if config.default_space else {}
        self.objective, space, self.notes = choose(config.objective, requested, defaults)
        fixed: dict[str, Value] = {
            key: domain.values[0]
            for key, domain in space.items()
            if isinstance(domain, Choice) and len(domain.values) == 1
        }
        self.space: Space = {key: domain for key, domain in space.items() if key not in fixed}
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
            f"{self.config.scheduler}, each of {counted(self.run.optim.steps, 'step')}",
            f"objective: {self.objective}, every {counted(every, 'step')}; each validation "
            f"draws {counted(self.run.validation.drawings, 'held-out defect')}",
            "dry run: nothing was changed",
        ]


def _default_space(run: RunConfig, grid: bool) -> Space:
    space = spaces.default_space(run)
    if not grid:
        return space
    lists: Space = {key: domain for key, domain in space.items() if isinstance(domain, Choice)}
    return {"sga.scale": Choice(values=(0.5, 1.0, 1.5)), **lists}


def _grid_size(space: Space, trials: int | None) -> int:
    size = 1
    for key, domain in space.items():
        if not isinstance(domain, Choice):
            raise UserError(f"--search grid needs lists: {key} is a range, give it values")
        size *= len(domain.values)
    if trials not in (None, size):
        raise UserError(
            f"the grid has {counted(size, 'trial')}, not {trials}: omit --trials, or "
            "shorten its lists"
        )
    return size


def _validated(run: RunConfig, config: SweepConfig) -> RunConfig:
    """The run with validations for the scheduler, and a checkpoint at each."""
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
