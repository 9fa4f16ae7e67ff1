"""What launch.evaluate compares, by the names that a user gives."""

import re
from collections.abc import Sequence
from pathlib import Path

from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.errors import UserError


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """Folders by their names: NAME=DIR, or DIR, which is named after itself.

    Raises:
        UserError: If one does not exist, or two share a name or have a name of ours.
    """
    from acontrol.evaluation.material import CONTROLS

    found: dict[str, Path] = {}
    for text in given:
        name, divided, rest = text.partition("=")
        if divided and not rest:
            raise UserError(f"--synthetic {text}: names no folder; write {name}=DIR")
        path = Path(rest if divided else text).resolve()
        name = name if divided else path.name
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
            raise UserError(
                f"--synthetic {text}: {name!r} is no name of letters, digits, _ . and -; give "
                "one, NAME=DIR"
            )
        if name in CONTROLS:
            raise UserError(
                f"--synthetic {text}: {name} is a source of its own; give another name"
            )
        if name in found:
            raise UserError(
                f"--synthetic {text}: two sources are named {name}; name them apart, NAME=DIR"
            )
        open_folder(path)
        found[name] = path
    return found


def source_names(
    given: str | None, controls: Sequence[str], synthetic: Sequence[str]
) -> list[str]:
    """The sources to compare, each once.

    Args:
        given: Names divided by commas; by default all.
        controls: Those that need no generator.
        synthetic: Names of generated folders; by default each alone and with "real".

    Raises:
        UserError: If one is unknown or named twice.
    """
    if given is None:
        generated = [one for name in synthetic for one in (name, f"real+{name}")]
        return [*controls, *generated]
    names = [one.strip() for one in given.split(",")]
    known = [*controls, *synthetic]
    for name in names:
        parts = name.split("+")
        for part in parts:
            if part not in known or (part == "none" and len(parts) > 1):
                raise UserError(
                    f"--sources: no source {name!r}; choose from {', '.join(known)} and "
                    "mixtures such as real+NAME"
                )
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise UserError(f"--sources: {twice} is named twice")
    return names


def chosen_categories(folder: MvtecFolder, given: Sequence[str]) -> tuple[str, ...]:
    """The categories to compare on, each once; by default all.

    Raises:
        UserError: If one is unknown or named twice.
    """
    for name in given:
        folder.defect_types(name)
        if given.count(name) > 1:
            raise UserError(f"--category: {name} is named twice")
    return tuple(given) or folder.categories
