"""Search settings with Ray Tune; the same command resumes a sweep.

    python -m tune.search PRESET --data.shards DIR --output SWEEP [--trials N]
                          [--space KEY=VALUES ...] [--objective NAME] [--dry-run] ...

Each trial is a training run of its own under SWEEP/trials, with a nested MLflow run. Takes
acontrol train's presets and settings for what the trials share. By default gamma, T_g, alpha
and the dropout rates are searched; --space adds keys or changes these. SWEEP/best.json is the
best trial's config: train with it by acontrol train --config SWEEP/best.json.
"""

import os
import sys
from collections.abc import Sequence

from launch.entry import loading, main
from launch.train import read_config_of
from tune.plan import Plan, SweepConfig

PROG = "python -m tune.search"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Search, and print where the best trial's config is."""
    plan = Plan(read_config_of(SweepConfig, args, prog, __doc__))
    for line in plan.notes:
        print(line, flush=True)
    if plan.config.dry_run:
        for line in plan.describe():
            print(line)
        return
    # Ray and the models are imported only once the settings are valid.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    with loading():
        from tune.sweep import run_sweep

    folder, whole = run_sweep(plan)
    if not whole:
        print("Interrupted. The same command continues the sweep", file=sys.stderr)
        sys.exit(130)
    print(f"Train it:  acontrol train --config {folder / 'best.json'} --output RUN")
    print(f"Best trial's config: {folder / 'best.json'}")


if __name__ == "__main__":
    main(run)
