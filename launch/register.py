"""Register a finished run's adapter as a new version of a model, with its model card.

    python -m launch.register RUN NAME [--licence NOTE ...] [--evaluation DIR ...]
                              [--tracking.uri URI]

The version gets the alias "candidate"; acontrol promote compares it with the champion. It goes
to the run's MLflow server, unless another one is given.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from acontrol.config import Settings
from acontrol.errors import UserError
from acontrol.runs import storage
from acontrol.runs.server import named_uri, server_uri, without_password
from launch.entry import main
from launch.options import parse

PROG = "python -m launch.register"


class ServerOptions(Settings):
    """Which MLflow server."""

    uri: str | None = Field(
        None,
        description="Tracking server or database; by default MLFLOW_TRACKING_URI, else "
        "runs/mlflow.db.",
    )


# The files of a run that are registered.
REGISTERED = ("run.json", "config.json", "adapter")


class RegisterCommand(Settings):
    """Settings of launch.register."""

    run: str = Field(description="The run's output folder, or its URI.")
    name: str = Field(description="The model's name; created if it is new.")
    licence: tuple[str, ...] = Field(
        (), description="Notes on licences for the card, such as your data's."
    )
    evaluation: tuple[Path, ...] = Field(
        (), description="Folders of acontrol evaluate, whose figures go into the card."
    )
    tracking: ServerOptions = ServerOptions()


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Register the run, and print the next step."""
    command = parse(
        RegisterCommand,
        args,
        prog=prog,
        description=__doc__,
        positional={"run": "RUN", "name": "NAME"},
    )
    run_path = storage.storage_path(command.run)
    if not run_path.is_dir():
        raise UserError(f"{command.run}: no such folder")
    with storage.local_copy(run_path, REGISTERED) as folder:
        register(
            folder, command.name, command.tracking.uri, command.licence, command.evaluation
        )


def register(
    folder: Path,
    name: str,
    uri: str | None,
    licences: Sequence[str] = (),
    evaluations: Sequence[Path] = (),
) -> None:
    """Register a run's folder; launch.train --register does it too."""
    from acontrol.registry.register import register_run

    done = register_run(folder, name, named_uri(uri), licences, evaluations)
    if not done.is_new:
        print(f"These weights are version {done.version} already")
    print(f"Make it the champion:  acontrol promote {name}{_server_option(done.uri)}")
    print(f"Registered: models:/{name}/{done.version} (alias candidate)")


def _server_option(uri: str) -> str:
    """What a next command needs to find the server by itself."""
    try:
        found = server_uri(None)
    except UserError:
        found = None
    return "" if found == uri else f" --tracking.uri {shlex.quote(without_password(uri))}"


if __name__ == "__main__":
    main(run)
