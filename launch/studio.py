"""A page to draw defects on by hand: paint where, pick a reference, keep what is good.

    python -m launch.studio --model MODEL --data ROOT --out KEPT [--port 8080]

Serves it on this machine and opens it. What a person keeps is a data set in MVTec AD's layout,
which acontrol generate --replay KEPT draws again, byte for byte. Nothing is loaded from
elsewhere. Needs pip install 'acontrol[studio]'.
"""

import importlib.util
from collections.abc import Sequence

from acontrol.errors import UserError
from acontrol.studio.settings import StudioConfig
from launch.entry import loading, main
from launch.options import parse

PROG = "python -m launch.studio"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Serve the page."""
    config = parse(StudioConfig, args, prog=prog, description=__doc__)
    if importlib.util.find_spec("nicegui") is None:
        raise UserError("the page needs NiceGUI: pip install 'acontrol[studio]'")
    with loading():
        from acontrol.studio.server import serve

    serve(config)


if __name__ == "__main__":
    main(run)
