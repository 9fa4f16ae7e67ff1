"""Where a run lies: a local folder or an object store, by the same few verbs.

What is written is there whole or not at all, also after a kill. A local file is written beside
its place, synced and renamed; an object store shows an object once all of it has arrived.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from acontrol.errors import UserError

StoragePath = Path | UPath
# What a full disk or a used-up quota says.
FULL = (errno.ENOSPC, errno.EDQUOT)


def storage_path(where: str | os.PathLike[str]) -> StoragePath:
    """A local path, or the place that a URI such as s3://bucket/run names.

    Raises:
        UserError: If nothing that is installed can reach such a URI.
    """
    if "://" not in str(where):
        return Path(where)
    try:
        # Listings are never remembered: other processes write here too.
        found = UPath(str(where), use_listings_cache=False)
        _ = found.fs
        return found
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: cannot be reached ({reason})") from error


def is_local(where: StoragePath) -> bool:
    """Whether it is a folder or file of this machine, or mounted on it."""
    return isinstance(where, Path)


def on_this_node(where: StoragePath) -> Path:
    """The folder itself, or one on this node that stands for a place in an object store."""
    if isinstance(where, Path):
        return where
    cache = os.environ.get("ACONTROL_CACHE") or Path.home() / ".cache" / "acontrol"
    return Path(cache, "runs", hashlib.sha256(str(where).encode()).hexdigest()[:16])


def write(file: StoragePath, content: bytes) -> None:
    """Put a file in its place in one piece, over an earlier one; durable once this returns.

    Raises:
        OSError: If it could not be written; then what was there before still is.
    """
    if not isinstance(file, Path):
        file.fs.pipe_file(file.path, content)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync(file.parent)


def sha256(file: StoragePath) -> str:
    """Digest of a file, read a piece at a time."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")  # type: ignore[arg-type]  # Has readinto.
    return digest.hexdigest()


@contextlib.contextmanager
def local_copy(folder: StoragePath, names: Sequence[str]) -> Iterator[Path]:
    """A local folder with those files and folders, as far as they are there.

    Args:
        folder: Where they lie; a local one is given as it is.
        names: Of files, and of folders of files, inside it.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="acontrol-copy-") as scratch:
        for name in names:
            source = (folder / name).path
            if folder.fs.exists(source):
                folder.fs.get(source, str(Path(scratch, name)), recursive=True)
        yield Path(scratch)


def remove(folder: StoragePath) -> None:
    """Delete a folder with all it holds, if it is there; what cannot be deleted is left."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.fs.exists(folder.path):
        folder.fs.rm(folder.path, recursive=True)


def check_space(where: StoragePath, needed: int) -> None:
    """See that a local disk can take so many bytes; an object store is not asked.

    Raises:
        UserError: If it cannot.
    """
    if not isinstance(where, Path):
        return
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free
    if free < needed:
        raise UserError(full(where, needed, free))


def full(where: StoragePath, needed: int, free: int | None = None) -> str:
    """The one line about a full disk."""
    left = "" if free is None else f", {free / 2**20:.0f} MiB are free"
    return f"{where}: no room for {needed / 2**20:.0f} MiB{left}; make room there"


def for_ray(folder: StoragePath) -> tuple[str, Any]:
    """A path, and the file system that it is on, in Arrow's words; None is the local one."""
    if isinstance(folder, Path):
        return str(folder), None
    import pyarrow.fs  # Comes with Ray.

    return folder.path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(folder.fs))


def _sync(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
