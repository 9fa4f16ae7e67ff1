"""Locks on folders that are written: one launch, or one writer, at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from acontrol.data.publish import work_folder
from acontrol.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def only_launch(run: object) -> Iterator[None]:
    """Lock a run's folder, creating it.

    An object store has no locks: there the later launch takes over, and the earlier one ends
    before it writes its next checkpoint.

    Raises:
        UserError: If another launch holds the lock, or it is a file.
    """
    if not isinstance(run, Path):
        yield
        return
    refuse_file(run)
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{run}: another launch is running there") from None
    try:
        yield
    finally:
        lock.release()


def refuse_file(run: Path) -> None:
    """Refuse a file where a folder is to be written.

    Raises:
        UserError: If it is one.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: is a file, and a folder is written there; name another")


def refuse_if_locked(run: Path) -> None:
    """Refuse a folder in which another launch is running; creates nothing.

    Raises:
        UserError: If one is.
    """
    if (run / LOCK).exists():
        with only_launch(run):
            pass


@contextlib.contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Lock the place where one command at a time writes what will be ``out``.

    The lock is where the folder is worked on (`publish.work_folder`), so that nothing of it is
    in the result, and goes with it.

    Raises:
        UserError: If another command holds the lock.
    """
    work = work_folder(out)
    created = [folder for folder in work.parents if not folder.exists()]
    with only_launch(work):
        try:
            yield
        finally:
            # Folders that hold anything stay, as an unfinished job of launch.generate.
            with contextlib.suppress(OSError):
                (work / LOCK).unlink()
                for folder in (work, *created):
                    folder.rmdir()


@contextlib.contextmanager
def waiting(file: Path) -> Iterator[None]:
    """Wait until no other process is in a block for this file; creates its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}{LOCK}")):
        yield
