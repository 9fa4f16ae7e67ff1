"""Measure generated defects: how good they are, and whether they help.

    python -m launch.evaluate quality --real ROOT --synthetic [NAME=]DIR ... --out DIR
    python -m launch.evaluate localization --real ROOT [--synthetic [NAME=]DIR ...] --out DIR
    python -m launch.evaluate classification --real ROOT --synthetic [NAME=]DIR ... --out DIR
    python -m launch.evaluate ablation PRESET --real ROOT --data.shards DIR --out DIR

Each has its own --help. All folders are in MVTec AD's layout. Killed, the same command
continues. Each leaves tables as Markdown, CSV and one HTML page that needs no other file.
"""

import sys
from collections.abc import Sequence

from acontrol.errors import UserError
from launch.entry import main, named_for

PROG = "python -m launch.evaluate"
COMMANDS = ("quality", "localization", "classification", "ablation")


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Hand the rest of the line to the sub-command."""
    name = args[0] if args else ""
    if name in ("-h", "--help"):
        print(named_for(prog, __doc__))
        sys.exit(0)
    if name == "quality":
        from launch.evaluate_quality import run as command
    elif name == "localization":
        from launch.evaluate_localization import run as command
    elif name == "classification":
        from launch.evaluate_classification import run as command
    elif name == "ablation":
        from launch.evaluate_ablation import run as command
    else:
        given = f", got {name!r}" if name else ""
        raise UserError(f"say what to measure first, one of: {', '.join(COMMANDS)}{given}")
    rest = args[1:]
    options = [one.split("=")[0] for one in rest if one.startswith("--")]
    for option in options:
        if options.count(option) > 1:
            raise UserError(f"give {option} once, with all its values after it")
    command(rest, prog=f"{prog} {name}")


if __name__ == "__main__":
    main(run)
