"""Which MLflow server or database a command logs to."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from acontrol.errors import UserError
from acontrol.runs.paths import in_ray_job
from acontrol.runs.storage import StoragePath

DATABASE, ARTIFACTS = "mlflow.db", "artifacts"
SQLITE = "sqlite:///"
SHARED = Path("runs", DATABASE)  # Of the current folder.


@dataclass(frozen=True)
class TrackingStore:
    """A tracking server or database.

    Attributes:
        uri: For MLflow.
        artifacts: Where files go, of a database that nobody named; else the store knows.
    """

    uri: str
    artifacts: Path | None = None


def named_uri(option: str | None) -> str | None:
    """The server or database named by an option or the environment, if any."""
    return option or os.environ.get("MLFLOW_TRACKING_URI") or None


def tracking_store(
    option: str | None, folder: StoragePath, recorded: str | None = None
) -> TrackingStore:
    """The store of what is written to ``folder``.

    It is the named one; else the database that an earlier launch logged to; else one for all
    commands: ``runs/mlflow.db`` of the current folder, or, for an output elsewhere,
    ``mlflow.db`` next to it, where all nodes of a cluster see both.

    Args:
        option: The command's option for it.
        folder: The output.
        recorded: URI of the store that an earlier launch recorded in the folder.

    Raises:
        UserError: If none is named and the folder is in an object store, which cannot hold one.
    """
    if named := named_uri(option):
        return TrackingStore(named)
    if not isinstance(folder, Path):
        raise UserError(
            f"--output {folder}: MLflow's database cannot be there; name a server with "
            "--tracking.uri or MLFLOW_TRACKING_URI"
        )
    folder = folder.resolve()
    file = database_file(recorded)
    if file is None or not file.exists():
        file = folder / DATABASE  # Versions before 0.2 gave each output its own.
        if not file.exists():
            file = _shared_database(folder)
    return TrackingStore(database_uri(file), file.parent / ARTIFACTS)


def own_database(run: Path) -> str:
    """The database inside a run's folder, which versions before 0.2 made by default."""
    return database_uri(run.resolve() / DATABASE)


def database_uri(file: Path) -> str:
    """MLflow's URI of an SQLite file."""
    return f"{SQLITE}{file}"


def database_file(uri: str | None) -> Path | None:
    """The file of an SQLite URI; None for anything else."""
    return Path(uri.removeprefix(SQLITE)) if uri and uri.startswith(SQLITE) else None


def server_uri(option: str | None) -> str:
    """The named server or database, else the current folder's ``runs/mlflow.db``.

    Raises:
        UserError: If there is neither.
    """
    if uri := named_uri(option):
        return uri
    if SHARED.exists():
        return database_uri(SHARED.resolve())
    raise UserError(
        f"there is no {SHARED} here: name the MLflow server or database with --tracking.uri "
        "or MLFLOW_TRACKING_URI"
    )


def without_password(text: str) -> str:
    """Text to be shown, without the passwords of the URIs in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _shared_database(folder: Path) -> Path:
    here = Path.cwd()
    # A Ray job's current folder is a temporary copy; the root is nobody's project.
    if here in folder.parents and here != here.parent and not in_ray_job():
        return here / SHARED
    beside = folder.parent / DATABASE
    probe = beside
    while not probe.exists() and probe != probe.parent:
        probe = probe.parent
    return beside if os.access(probe, os.W_OK) else folder / DATABASE
