"""Damage of a shard, found by comparison with its index.

Contents are compared by offset and sha256, so a damaged header, which costs a streaming reader
the rest of the shard, costs nothing here.
"""

import errno
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from acontrol.data.index import TAR_BLOCK, IndexedSample, Member, Shard


@dataclass(frozen=True)
class Damage:
    """One damaged place.

    Attributes:
        shard: The shard's name.
        key: The sample's key; None between samples.
        detail: The damaged part, with its offset.
        lost: Whether the sample is unusable.
    """

    shard: str
    key: str | None
    detail: str
    lost: bool

    @property
    def place(self) -> str:
        """The place in the shard."""
        return f"sample {self.key}, {self.detail}" if self.key else self.detail


def find_shard_damage(path: Path | None, shard: Shard) -> list[Damage]:
    """Compare a shard with its index entry.

    Args:
        path: The tar; None if it is missing.
        shard: The index entry.

    Returns:
        At most one damaged place per sample, in the index's order; empty only if the shard is
        intact.
    """
    if path is None:
        detail = "lost with its shard, which is missing"
        return [Damage(shard.name, sample.key, detail, lost=True) for sample in shard.samples]
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size == shard.size and _is_shard_intact(stream, shard):
            return []
        expected = f"(file of {size} bytes, {shard.size} expected)"
        places = [(sample, _place(stream, sample, expected)) for sample in shard.samples]
    damage = [Damage(shard.name, sample.key, *place) for sample, place in places if place]
    # Padding and the tar's end belong to no sample.
    return damage or [Damage(shard.name, None, f"between its members {expected}", lost=False)]


def is_intact(content: bytes, member: Member) -> bool:
    """Whether the content is the member's."""
    return hashlib.sha256(content).hexdigest() == member.sha256


def _is_shard_intact(stream: io.BufferedReader, shard: Shard) -> bool:
    try:
        return hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256
    except OSError as error:
        return _raise_unless_bad_block(error)


def _place(
    stream: io.BufferedReader, sample: IndexedSample, expected: str
) -> tuple[str, bool] | None:
    """A sample's first damaged place and whether the sample is lost; contents come first."""
    for member in sample.members:
        if not _is_member_intact(stream, member):
            return f"member {member.name} at offset {member.offset} {expected}", True
    for member in sample.members:
        start = member.offset - TAR_BLOCK
        if not _has_header_at(stream, start, member):
            return f"the header of {member.name} at offset {start} {expected}", False
    return None


def _has_header_at(stream: io.BufferedReader, start: int, member: Member) -> bool:
    """Whether a regular file of the member's size starts here; long names are elsewhere."""
    stream.seek(start)
    try:
        info = tarfile.TarInfo.frombuf(stream.read(TAR_BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.isreg() and info.size == member.size


def _is_member_intact(stream: io.BufferedReader, member: Member) -> bool:
    try:
        stream.seek(member.offset)
        return is_intact(stream.read(member.size), member)
    except OSError as error:
        return _raise_unless_bad_block(error)


def _raise_unless_bad_block(error: OSError) -> bool:
    """False for an unreadable disk block; any other error is not damage of the data."""
    if error.errno == errno.EIO:
        return False
    raise error
