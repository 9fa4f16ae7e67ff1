"""MLflow for launch.evaluate: one run a folder of results, however often it is continued."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from acontrol.config import TrackingConfig
from acontrol.errors import UserError
from acontrol.runs import storage
from acontrol.runs.lock import only_launch
from acontrol.runs.mlflow_client import describe, own_database
from acontrol.runs.tracking import Tracker

RUN_NAME = "mlflow_run.txt"
_COMMAND_NAME = "command.txt"


@contextlib.contextmanager
def results_in(out: Path, command: str, tracking: TrackingConfig) -> Iterator[Tracker]:
    """Have a folder of results for oneself, with its MLflow run.

    Args:
        out: The folder; made if it is new.
        command: The sub-command, whose alone the folder is.
        tracking: Where MLflow is.

    Raises:
        UserError: If it is no folder, another command's, or in use, or the tracking server
            cannot be reached.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is no folder")
    mark = out / _COMMAND_NAME
    if mark.is_file() and (other := mark.read_text().strip()) != command:
        raise UserError(
            f"--out {out}: holds the results of launch.evaluate {other}; name another folder"
        )
    with only_launch(out):
        storage.write(mark, f"{command}\n".encode())
        yield open_run(out, tracking)


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
    storage.write(record, f"{uri}\n{tracker.run_id}".encode())
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
