"""Draw what a detector misses, in rounds, and see whether it then finds more.

    python -m launch.improve ROOT --model MODEL --out DIR [--split-file FILE]

Each round trains detectors by cross-validation within the training part, lists the defects
that they miss and what they falsely find, draws defects by a plan on other good images, keeps
those that are neither trivial nor invisible, and trains again with them. Three plans are
compared: all training defects alike, those that are missed, and these by copy-paste. It ends
when the paired gain in pixel AP of --plan is not above 0. DIR/kept then holds the drawings, and
DIR/index.html shows all. The test images stay closed, but for --final. The same command
continues after a kill.
"""

from collections.abc import Sequence

from acontrol.improve.settings import ImproveConfig
from launch.entry import loading, main
from launch.options import parse

PROG = "python -m launch.improve"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Run the rounds."""
    config = parse(
        ImproveConfig, args, prog=prog, description=__doc__, positional={"root": "ROOT"}
    )
    with loading():
        from acontrol.improve.run import improve

    improve(config)


if __name__ == "__main__":
    main(run)
