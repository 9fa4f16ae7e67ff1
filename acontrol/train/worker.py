"""What goes to the workers.

Kept light: Ray's controller process imports this module too, and has no use for models.
"""

from dataclasses import dataclass
from pathlib import Path

from acontrol.config import RunConfig


@dataclass(frozen=True)
class Launch:
    """What the driver hands to every worker."""

    config: RunConfig
    folder: Path
    tracking_uri: str
    mlflow_run: str
    base_digest: str
    show_progress: bool

    @property
    def stop_file(self) -> Path:
        """Its presence asks the workers to stop after a bundle."""
        return self.folder / "stop"


def run_worker(settings: dict[str, Launch]) -> None:
    """Ray Train's entry into a worker."""
    from acontrol.train.rank import train_rank

    train_rank(settings["launch"])
