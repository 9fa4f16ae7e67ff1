"""Search settings with Ray Tune; the same command continues a sweep that was stopped.

    python -m tune.search PRESET --data.shards DIR --output SWEEP [--trials N]
                          [--space KEY=VALUES ...] [--objective NAME] [--dry-run] ...

Each trial is a training run of its own under SWEEP/trials, with a nested MLflow run. Takes
launch.train's presets and settings for what the trials share. By default gamma, T_g, alpha and
the dropout rates are searched; --space adds keys or changes these. SWEEP/best.json is the best
trial's config: train with it by launch.train --config SWEEP/best.json.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from acontrol.config import RunConfig
from acontrol.errors import UserError
from launch.entry import main
from launch.train import read_config_of
from tune import space as spaces
from tune.objective import choose
from tune.settings import SweepConfig
from tune.space import Choice, Space, Value

PROG = "python -m tune.search"
DEFAULT_TRIALS = 12
DRAWINGS = 8  # Held-out defects that a validation draws, unless the config says how many.
VALIDATIONS = 6  # In a trial's course under ASHA, unless the config says how often.


def run(args: Sequence[str]) -> None:
    """Search, and say where the best trial's config is."""
    rest = [arg for arg in args if arg != "--dry-run"]
    config = read_config_of(SweepConfig, rest, PROG, __doc__)
    plan = Plan(config)
    for line in plan.notes:
        print(line, flush=True)
    if len(rest) < len(args):
        for line in plan.describe():
            print(line)
        return
    # Ray and the models are imported only once the arguments are known to be good.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    from tune.sweep import run_sweep

    folder, whole = run_sweep(plan)
    if not whole:
        print("error: Interrupted. The same command continues the sweep", file=sys.stderr)
        sys.exit(130)
    print(f"Train it:  python -m launch.train --config {folder / 'best.json'} --output RUN")
    print(f"Best trial's config: {folder / 'best.json'}")


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
        self.run = _validated(spaces.with_values(run, fixed), config)
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
    """The run, validated as often as the scheduler looks, with a bundle and a report each."""
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


if __name__ == "__main__":
    main(run)
