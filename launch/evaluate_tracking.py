"""MLflow for launch.evaluate: one run a folder of results, however often it is continued."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acontrol.config import TrackingConfig
from acontrol.train.mlflow_run import describe, own_database
from acontrol.train.tracking import Tracker

RUN_NAME = "mlflow_run.txt"


def open_run(out: Path, tracking: TrackingConfig) -> Tracker:
    """The folder's run, found again or made.

    Raises:
        UserError: If the tracking server cannot be reached or refuses.
    """
    named = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or own_database(out)
    record = out / RUN_NAME
    known = record.read_text().split("\n") if record.is_file() else []
    tracker = Tracker.open(
        uri,
        tracking.experiment,
        tracking.run_name or out.name,
        known[1] if known and known[0] == uri else None,
        out,
        artifacts=None if named else out / "artifacts",
        parent=tracking.parent_run,
    )
    record.write_text(f"{uri}\n{tracker.run_id}")
    return tracker


def log(
    tracker: Tracker,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    files: Sequence[Path],
) -> None:
    """Log settings, metrics and files, and close the run."""
    if not tracker.client.get_run(tracker.run_id).data.params:
        describe(tracker.client, tracker.run_id, settings)
    if metrics:
        tracker.log_next(metrics)
    for file in files:
        tracker.log_file(file)
    tracker.finish("FINISHED")
