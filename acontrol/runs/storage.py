"""Where a run is stored: a local folder or an object store, with the same few functions.

Writes are atomic, also under a kill. A local file is written next to its place, synced and
renamed; an object store shows an object once it is complete.
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

from acontrol.errors import UserError, naming, one_line

StoragePath = Path | UPath
# Errors of a full disk or an exhausted quota.
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota's.


def storage_path(uri: str | os.PathLike[str]) -> StoragePath:
    """A local path, or one in an object store by its URI, such as s3://bucket/run.

    Raises:
        UserError: If no installed package supports such a URI.
    """
    if "://" not in str(uri):
        return Path(uri).expanduser()
    try:
        # Without a cache of listings: other processes write here too.
        path = UPath(str(uri), use_listings_cache=False)
        _ = path.fs
        return path
    except (ImportError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{uri}: cannot be reached ({reason})") from error


def is_local(path: StoragePath) -> bool:
    """Whether a path is on this machine, or mounted on it."""
    return isinstance(path, Path)


def on_this_node(path: StoragePath) -> Path:
    """The folder itself, or this node's own counterpart of one in an object store."""
    if isinstance(path, Path):
        return path
    cache = os.environ.get("ACONTROL_CACHE") or Path.home() / ".cache" / "acontrol"
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(cache).expanduser() / "runs" / digest


def write(file: StoragePath, content: bytes, *, durable: bool = True) -> None:
    """Write a file in one piece, over an earlier one.

    Args:
        file: The file; its folder is created.
        content: All of it.
        durable: As for ``replacing``.

    Raises:
        OSError: If it could not be written; the earlier file is then unchanged.
    """
    if isinstance(file, Path):
        with naming(file), replacing(file, durable=durable) as partial:
            partial.write_bytes(content)
    else:
        file.fs.pipe_file(file.path, content)


@contextlib.contextmanager
def replacing(file: Path, *, durable: bool = True) -> Iterator[Path]:
    """Replace a local file by what is written to the path that this yields, next to it.

    After an exception, or a kill, the earlier file is unchanged.

    Args:
        file: The file; its folder is created.
        durable: Whether it also survives a crash of the machine once the block has ended. That
            takes two fsyncs, too much for thousands of small files.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        if durable:
            _sync(partial)
        os.replace(partial, file)
    except Exception:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        _sync(file.parent)


def sha256(file: StoragePath) -> str:
    """Sha256 of a file, read in pieces."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")  # type: ignore[arg-type]  # Has readinto.
    return digest.hexdigest()


@contextlib.contextmanager
def local_copy(folder: StoragePath, names: Sequence[str]) -> Iterator[Path]:
    """A local folder with these files and folders, except missing ones.

    Args:
        folder: Where they are stored; a local folder is yielded as it is.
        names: Files and folders inside it.
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
    """Delete a folder tree, if it exists, as far as possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.fs.exists(folder.path):
        folder.fs.rm(folder.path, recursive=True)


def check_space(path: StoragePath, needed: int) -> None:
    """Check that a local disk has so many bytes free; object stores are not checked.

    Raises:
        UserError: If it has not.
    """
    if not isinstance(path, Path):
        return
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < needed:
        raise UserError(full(path, needed, free))


def full(path: StoragePath, needed: int, free: int | None = None) -> str:
    """The message about a full disk."""
    left = "" if free is None else f", {free / 2**20:.0f} MiB are free"
    return f"{path}: no room for {needed / 2**20:.0f} MiB{left}; make room there"


def for_ray(folder: StoragePath) -> tuple[str, Any]:
    """A path and its Arrow file system, None for the local one."""
    if isinstance(folder, Path):
        return str(folder), None
    import pyarrow.fs  # Comes with Ray.

    return folder.path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(folder.fs))


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the renames in a folder."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder, and needs none synced.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
