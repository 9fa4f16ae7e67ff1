"""Folders that appear complete: written next to their place, then renamed.

A mount point (any volume of a container) or the current directory cannot be replaced by a
rename. What will be there is then written inside it and moved up at the end, the file that
makes it complete last. Which of the two is known before any work.
"""

import os
import shutil
from pathlib import Path

from acontrol.errors import UserError

WORK = ".partial"


def work_folder(out: Path) -> Path:
    """Where to write what will be ``out``: next to it, or inside; not created.

    An earlier one is found again, also from another working directory.
    """
    out = out.resolve()
    beside = out.parent / f".{out.name}{WORK}"
    if _stays(out) and (os.path.ismount(out) or not beside.exists()):
        return out / WORK
    return beside


def check_new(out: Path, option: str = "--out") -> None:
    """Refuse a folder that is neither empty nor begun, or cannot be made.

    Raises:
        UserError: If it is, or its place cannot be written to.
    """
    names = [path.name for path in out.iterdir()] if out.is_dir() else [out.name] * out.exists()
    if names and not any(WORK in name for name in names):
        raise UserError(f"{out} exists and is not empty: name another {option}")
    place = work_folder(out).parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{place} is a file: name another {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} cannot be written to: name another {option}")


def put_in_place(work: Path, out: Path, last: str) -> None:
    """Make what was written to ``work`` the folder ``out``; ``last`` is moved last.

    Called again after an interruption, it goes on. Hidden files are not part of the result.
    """
    out = out.resolve()
    if not _stays(out):
        if out.exists():
            out.rmdir()
        os.rename(work, out)
    else:
        shown = [name for name in os.listdir(work) if not name.startswith(".")]
        for name in sorted(shown, key=lambda name: (name == last, name)):
            os.rename(work / name, out / name)
        shutil.rmtree(work)
    for hidden in out.glob(".*"):
        if hidden.is_file():
            hidden.unlink()


def _stays(out: Path) -> bool:
    """Whether a folder cannot be replaced by another, only filled."""
    if not out.is_dir():
        return False
    here = Path.cwd()
    return os.path.ismount(out) or out == here or out in here.parents
