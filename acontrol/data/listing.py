"""The picture files of a folder: which count, which are read, and what others left there.

A picture that cannot be read still counts: a data set's thirds follow the sorted names, so
leaving one out in silence would move others from test to train.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from acontrol.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Pictures too, of formats that are not read.
UNREAD_SUFFIXES = (
    *(".webp", ".gif", ".jfif", ".jpe", ".jp2", ".j2k", ".jpx", ".jxl", ".heic", ".heif"),
    *(".avif", ".tga", ".pgm", ".ppm", ".pbm", ".pnm", ".dib", ".exr", ".hdr", ".psd", ".pcx"),
    *(".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"),
)  # fmt: skip
MASK_ENDINGS = ("_mask", "-mask", "_masks", "_gt", "_label", "_seg", "_segmentation")
# What NAS boxes, macOS and Windows leave everywhere; hidden names are skipped too.
_JUNK = frozenset(
    (
        "#recycle",
        "#snapshot",
        "~snapshot",
        "__macosx",
        "__pycache__",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "network trash folder",
        "temporary items",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    )
)


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden or a system's own, such as Synology's @eaDir."""
    return name.startswith((".", "@")) or name.casefold() in _JUNK


def entries(folder: Path) -> list[Path]:
    """A folder's entries, sorted, without junk; empty if it is missing.

    Raises:
        UserError: If it cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not is_junk(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """The folders inside a folder, sorted.

    Raises:
        UserError: For a dangling link, or a folder name that shards cannot hold.
    """
    folders = []
    for path in entries(folder):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: the link is broken; repair or remove it")
        if path.is_dir():
            _check_name(path)
            folders.append(path)
    return folders


def distinct(folders: Iterable[Path]) -> list[Path]:
    """These folders, after a check that none is there twice by a link.

    Raises:
        UserError: For two names of one folder: its images would be read twice.
    """
    names: dict[Path, Path] = {}
    for path in folders:
        other = names.setdefault(path.resolve(), path)
        if other != path:
            link, kept = (path, other) if path.is_symlink() else (other, path)
            raise UserError(
                f"{link}: is {kept} by another name, and its images would be read twice; "
                "remove the link"
            )
    return [*names.values()]


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix, of a format that is read or not."""
    return path.suffix.lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)


def pictures(folder: Path) -> list[Path]:
    """The pictures straight in a folder; a dangling link counts, so that reading reports it."""
    return [path for path in entries(folder) if is_picture(path) and not path.is_dir()]


def nested_pictures(folder: Path) -> Iterator[Path]:
    """The pictures in the folders below a folder; links to folders are not followed."""
    for path in entries(folder):
        if path.is_dir() and not path.is_symlink():
            yield from pictures(path)
            yield from nested_pictures(path)


def image_files(folder: Path, *, nested: bool = False) -> dict[str, list[Path]]:
    """The pictures of a folder by id, which is their stem.

    One that is not read counts only if no other has its id.

    Args:
        folder: The folder.
        nested: Whether pictures in sub-folders, which are not read, count too.
    """
    files: dict[str, list[Path]] = {}
    others: dict[str, list[Path]] = {}
    for path in pictures(folder):
        read = path.suffix.lower() in IMAGE_SUFFIXES
        (files if read else others).setdefault(path.stem, []).append(path)
    if nested:
        for path in nested_pictures(folder):
            others.setdefault(path.stem, []).append(path)
    return others | files


def numbered(number: int, count: int) -> str:
    """The name of one of ``count`` files, so wide that sorted names keep the order.

    Tools that pair images and masks by their sorted names, as anomalib does, need that.
    """
    return f"{number:0{max(3, len(str(count - 1)))}d}"


def masks_beside(files: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Pictures that look like masks of other pictures of the same folder.

    Returns:
        The id of its picture by the mask's own id.
    """
    return {
        name: name.removesuffix(ending)
        for name in files
        for ending in MASK_ENDINGS
        if name.endswith(ending) and name.removesuffix(ending) in files
    }


def by_id(folder: Path) -> dict[str, Path]:
    """The image file of each id.

    Raises:
        UserError: If two share an id, one is of a format that is not read or looks like
            another's mask, or shards cannot hold a name.
    """
    files = image_files(folder)
    for mask, image in masks_beside(files).items():
        raise UserError(mask_beside(files[mask][0], files[image][0]))
    return {name: only(name, paths, folder) for name, paths in files.items()}


def mask_beside(mask: Path, image: Path) -> str:
    """The message about a mask beside its picture."""
    return (
        f"{mask}: looks like the mask of {image.name}, and would be taken for a photograph; "
        "move it to ground_truth, or rename it"
    )


def only(name: str, paths: Sequence[Path], folder: Path) -> Path:
    """The only file of an id in a folder.

    Raises:
        UserError: If there is another, it lies in a sub-folder or is of a format that is not
            read, or shards cannot hold its name.
    """
    path = paths[0]
    _check_name(path)
    if path.parent != folder:
        raise UserError(
            f"{path}: lies in a sub-folder of {folder}, where images are not read; move it up, "
            "or remove it"
        )
    if len(paths) > 1:
        both = " and ".join(path.name for path in paths)
        raise UserError(f"{folder}: {both} share the id {name!r}; keep one of them")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f"{path}: {path.suffix} is not read; save it as PNG, or remove it")
    return path


def _check_name(path: Path) -> None:
    """Names go into JSON, tars and other file systems: UTF-8, no control characters.

    Raises:
        UserError: For any other name.
    """
    codes = [ord(character) for character in path.name]
    if any(0xD800 <= code < 0xE000 for code in codes):  # Surrogates: undecodable bytes.
        problem = "is not UTF-8"
    elif any(code < 32 or code == 127 for code in codes):
        problem = "holds a control character"
    else:
        return
    raise UserError(f"{path.parent}: the name {os.fsencode(path.name)!r} {problem}; rename it")
