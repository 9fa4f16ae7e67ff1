"""An output must not lie inside an input: what is written there would be read as data."""

import os
from collections.abc import Mapping
from pathlib import Path

from acontrol.errors import UserError

_Place = str | os.PathLike[str] | None


def refuse_overlap(out: _Place, option: str, inputs: Mapping[str, _Place]) -> None:
    """Refuse an output folder that is one of the inputs or lies inside it.

    Args:
        out: The output; None for none. Object stores' URIs are compared as they are written.
        option: What the user calls it.
        inputs: The folders that are read, by what the user calls them; None for none.

    Raises:
        UserError: If it does.
    """
    if out is None:
        return
    place = _real(out)
    for name, folder in inputs.items():
        if folder is not None and place.is_relative_to(_real(folder)):
            how = "the same folder as" if place == _real(folder) else "inside"
            raise UserError(
                f"{option} {out}: is {how} {name} {folder}, where it would be read as data; "
                "name a folder outside of it"
            )


def _real(place: str | os.PathLike[str]) -> Path:
    return Path(place) if "://" in str(place) else Path(place).expanduser().resolve()
