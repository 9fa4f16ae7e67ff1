"""The ``acontrol`` script, and ``python -m acontrol``.

The commands live in two packages with names that others have too: ROS 2 has a ``launch``, which
its set-up puts ahead of every environment. So both are taken from where this package is.
"""

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NoReturn

OWN = ("launch", "tune")
HOME = Path(__file__).resolve().parents[1]


def main() -> NoReturn:
    """Run the command that the first argument names, and exit."""
    for name in OWN:
        _take_own(name)
    try:
        importlib.import_module("launch.cli").main()
    except KeyboardInterrupt:  # While it is imported; later ones are caught there.
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    raise AssertionError("launch.cli.main returned")


def _take_own(name: str) -> None:
    folder = HOME / name
    spec = spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or not any(folder.glob("*.py")):
        sys.exit(f"error: {folder} is missing: install acontrol again")
    # Not executed: ours is empty, and another distribution may have put its own in its place.
    sys.modules[name] = module_from_spec(spec)


if __name__ == "__main__":
    main()
