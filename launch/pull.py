"""Fetch a registered model as an adapter folder, without executing any of it.

    python -m launch.pull models:/NAME@ALIAS --out DIR [--tracking.uri URI]

Checks every file's name, checksum, schema and shapes first. DIR is what
acontrol generate --model and acontrol train --init take.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from acontrol.config import Settings
from launch.entry import main
from launch.options import parse
from launch.register import ServerOptions

PROG = "python -m launch.pull"


class PullCommand(Settings):
    """Settings of launch.pull."""

    model: str = Field(description="The model, by alias or as models:/NAME/VERSION.")
    out: Path = Field(description="Folder to create.")
    tracking: ServerOptions = ServerOptions()


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Fetch and check the model, and print its folder."""
    command = parse(
        PullCommand,
        args,
        prog=prog,
        description=__doc__,
        positional={"model": "models:/NAME@ALIAS"},
    )

    from acontrol.data.publish import check_new
    from acontrol.registry.pull import pull
    from acontrol.runs.server import server_uri

    check_new(command.out)
    card = pull(command.model, command.out, server_uri(command.tracking.uri))
    print(f"{card.name}, weights {card.weights_sha256[:12]}, run {card.run}")
    print(f"Draw with it:  acontrol generate --model {command.out} --data ROOT --out DIR")
    print(f"Adapter: {command.out}")


if __name__ == "__main__":
    main(run)
