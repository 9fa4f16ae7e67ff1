"""MLflow for launch.evaluate: one run per folder of results."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from acontrol.config import TrackingConfig
from acontrol.data.lock import only_launch
from acontrol.errors import UserError
from acontrol.runs import storage
from acontrol.runs.inputs import DataInput
from acontrol.runs.mlflow_client import describe
from acontrol.runs.server import tracking_store
from acontrol.runs.tracking import Tracker

RUN_NAME = "mlflow_run.txt"
COMMAND_NAME = "command.txt"
WRITTEN = ("report.md", "results.csv", "index.html")  # What every evaluation writes.


@contextlib.contextmanager
def results_in(
    out: Path, command: str, tracking: TrackingConfig, data: DataInput
) -> Iterator[Tracker]:
    """Lock a folder of results and open its MLflow run.

    Args:
        out: The folder; created if new.
        command: The sub-command; a folder belongs to one.
        tracking: MLflow settings.
        data: What is measured on.

    Raises:
        UserError: If it is not a folder, holds such files of others, belongs to another command
            or is in use, or if the tracking server cannot be reached.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: not a folder")
    mark = out / COMMAND_NAME
    if mark.is_file() and (other := mark.read_text().strip()) != command:
        raise UserError(
            f"--out {out}: holds the results of acontrol evaluate {other}; name another folder"
        )
    if not mark.is_file() and (others := [name for name in WRITTEN if (out / name).exists()]):
        raise UserError(f"--out {out}: {others[0]} is there already; name another folder")
    with only_launch(out):
        storage.write(mark, f"{command}\n".encode())
        yield open_run(out, tracking, command, data)


def open_run(
    out: Path,
    tracking: TrackingConfig,
    command: str = "evaluation",
    data: DataInput | None = None,
) -> Tracker:
    """Open the folder's run, creating it if new.

    Raises:
        UserError: If the tracking server cannot be reached or refuses.
    """
    record = out / RUN_NAME
    before = record.read_text().split("\n") if record.is_file() else []
    store = tracking_store(tracking.uri, out, before[0] if before else None)
    tracker = Tracker.open(
        store,
        tracking.experiment,
        tracking.run_name or f"{command} {out.name}",
        before[1] if before[:1] == [store.uri] else None,
        out,
        parent=tracking.parent_run,
        data=data,
    )
    storage.write(record, f"{store.uri}\n{tracker.run_id}".encode())
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
