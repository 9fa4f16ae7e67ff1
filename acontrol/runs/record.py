"""A launch: what the driver passes to its workers, and RUN/run.json."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from acontrol.config import RunConfig, Settings
from acontrol.runs import storage
from acontrol.runs.server import own_database
from acontrol.runs.storage import StoragePath

NAMED = 8  # Most runs in a message.


@dataclass(frozen=True)
class Launch:
    """What the driver passes to every worker."""

    config: RunConfig
    folder: StoragePath
    tracking_uri: str
    mlflow_run: str
    base_digest: str
    show_progress: bool
    features: bool = False  # Whether config.data.features fits this run.

    @property
    def run(self) -> StoragePath:
        """The run's folder."""
        return self.folder.parent.parent

    @property
    def stop_file(self) -> StoragePath:
        """If it exists, workers stop after a checkpoint."""
        return self.folder / "stop"

    @property
    def reserved_file(self) -> StoragePath:
        """Holds the id of the workers' placement group in Ray."""
        return self.folder / "placement-group"


def runs_in(folder: Path) -> str:
    """The trained runs inside a folder, as the end of a sentence; "" if there are none."""
    try:
        runs = sorted(
            path for path in folder.iterdir() if (path / "adapter" / "config.json").is_file()
        )
    except OSError:
        return ""
    if not runs:
        return ""
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    return f"; it holds runs, give one of them: {', '.join(map(str, runs[:NAMED]))}{more}"


class RunRecord(Settings):
    """RUN/run.json: the last launch, and the run's MLflow run.

    Attributes:
        launch: Name of the last launch's folder.
        mlflow_run: Id of the MLflow run.
        mlflow_uri: The server or database; null for one inside the run's folder, as versions
            before 0.2 made it, so that the folder can be moved.
    """

    launch: str
    mlflow_run: str
    mlflow_uri: str | None

    @classmethod
    def of(cls, run: StoragePath, launch: str, mlflow_run: str, uri: str) -> "RunRecord":
        """The record of a launch that logs to ``uri``."""
        own = isinstance(run, Path) and uri == own_database(run)
        return cls(launch=launch, mlflow_run=mlflow_run, mlflow_uri=None if own else uri)

    def uri(self, run: StoragePath) -> str:
        """The server or database."""
        return self.mlflow_uri or own_database(Path(str(run)))

    @classmethod
    def read(cls, run: StoragePath) -> "RunRecord | None":
        """The record of a run's folder; None if missing or unreadable."""
        try:
            return cls.model_validate_json((run / "run.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, run: StoragePath) -> None:
        """Replace the record atomically."""
        storage.write(run / "run.json", self.model_dump_json().encode())
