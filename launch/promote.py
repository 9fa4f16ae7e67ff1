"""Make a model's candidate the champion, if it beats the current one.

    python -m launch.promote NAME [--metric METRIC] [--higher-is-better] [--force]

Compares the metric of the two versions' MLflow runs and prints both. Exit status 1
if the candidate is not better; the champion then stays.
"""

import sys
from collections.abc import Sequence

from pydantic import Field

from acontrol.config import Settings
from launch.entry import main
from launch.options import parse
from launch.register import ServerOptions

PROG = "python -m launch.promote"


class PromoteCommand(Settings):
    """Settings of launch.promote."""

    name: str = Field(description="The model's name.")
    metric: str = Field(
        "validation_loss", description="What is compared: a metric of both MLflow runs."
    )
    higher_is_better: bool = Field(False, description="Of that metric; by default lower is.")
    version: int | None = Field(
        None, ge=1, description="Promote this version; by default the candidate."
    )
    force: bool = Field(
        False, description="Promote without comparing, as to go back to an earlier version."
    )
    tracking: ServerOptions = ServerOptions()


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Compare the two versions, and promote the better one."""
    command = parse(
        PromoteCommand, args, prog=prog, description=__doc__, positional={"name": "NAME"}
    )

    from acontrol.registry.promote import promote
    from acontrol.runs.server import server_uri

    decision = promote(
        command.name,
        server_uri(command.tracking.uri),
        metric=command.metric,
        higher_is_better=command.higher_is_better,
        version=None if command.version is None else str(command.version),
        force=command.force,
    )
    print(decision.reason)
    if not decision.promoted:
        print("Not promoted", file=sys.stderr)
        sys.exit(1)
    print(f"Champion: models:/{command.name}@champion")


if __name__ == "__main__":
    main(run)
