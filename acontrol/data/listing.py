"""What folders of images hold: hidden entries left out, images by their ids."""

import os
from collections.abc import Sequence
from pathlib import Path

from acontrol.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden entries; nothing if it is missing."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """The folders inside a folder, sorted.

    Raises:
        UserError: If a link leads nowhere, which may have been one, or a folder's name is none
            that shards can hold.
    """
    found = []
    for path in _entries(folder):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: the link leads nowhere; mend or remove it")
        if path.is_dir():
            _check_name(path)
            found.append(path)
    return found


def image_files(folder: Path) -> dict[str, list[Path]]:
    """The image files of a folder by their ids, which are their stems."""
    files: dict[str, list[Path]] = {}
    for path in _entries(folder):
        # A dangling link counts, so that reading it says what is wrong.
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            files.setdefault(path.stem, []).append(path)
    return files


def by_id(folder: Path) -> dict[str, Path]:
    """The one image file of each id.

    Raises:
        UserError: If two share an id, or a name is none that shards can hold.
    """
    return {name: only(name, paths) for name, paths in image_files(folder).items()}


def only(name: str, paths: Sequence[Path]) -> Path:
    """The one file of an id.

    Raises:
        UserError: If there is another, or its name is none that shards can hold.
    """
    _check_name(paths[0])
    if len(paths) > 1:
        both = " and ".join(path.name for path in paths)
        raise UserError(f"{paths[0].parent}: {both} share the id {name!r}; keep one of them")
    return paths[0]


def _check_name(path: Path) -> None:
    """Names go into JSON, tars and other people's file systems: UTF-8, no control characters.

    Raises:
        UserError: For another name.
    """
    if not path.name.isascii() and not _is_utf8(path.name):
        problem = "is not UTF-8"
    elif any(ord(sign) < 32 or ord(sign) == 127 for sign in path.name):
        problem = "holds a control character"
    else:
        return
    raise UserError(f"{path.parent}: the name {os.fsencode(path.name)!r} {problem}; rename it")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
