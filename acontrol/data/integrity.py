"""What of a shard is not as its index says: which samples are lost, and where.

Contents are compared by offset and sha256, so that a damaged header, which loses half a shard
for whoever reads it as a stream, loses nothing here.
"""

import errno
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from acontrol.data.index import TAR_BLOCK, IndexedSample, Member, Shard


@dataclass(frozen=True)
class Damaged:
    """One damaged place.

    Attributes:
        shard: The shard's name.
        key: The sample's; None where the place is no sample's.
        what: What is damaged there, with its offset.
        lost: Whether the sample cannot be used any more.
    """

    shard: str
    key: str | None
    what: str
    lost: bool

    @property
    def place(self) -> str:
        """Where in the shard."""
        return f"sample {self.key}, {self.what}" if self.key else self.what


def damage_of(path: Path | None, shard: Shard) -> list[Damaged]:
    """Compare a shard with its index, and find each damaged sample if they differ.

    Args:
        path: The tar; None if there is none.
        shard: What the index says.

    Returns:
        What is damaged, at most one place a sample, in the index's order; nothing for a whole
        shard, at least one place for any other.
    """
    if path is None:
        what = "lost with its shard, which is not there"
        return [Damaged(shard.name, sample.key, what, lost=True) for sample in shard.samples]
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size == shard.size and _whole(stream, shard):
            return []
        expected = f"(file of {size} bytes, {shard.size} expected)"
        places = (_place(stream, sample, expected) for sample in shard.samples)
        found = [
            Damaged(shard.name, sample.key, *place)
            for sample, place in zip(shard.samples, places, strict=True)
            if place is not None
        ]
    # Padding and the tar's end belong to no sample.
    return found or [Damaged(shard.name, None, f"between its members {expected}", lost=False)]


def is_intact(content: bytes, member: Member) -> bool:
    """Whether these are a member's bytes."""
    return hashlib.sha256(content).hexdigest() == member.sha256


def _whole(stream: io.BufferedReader, shard: Shard) -> bool:
    try:
        return hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256
    except OSError as error:
        return _refuse_all_but_bad_blocks(error)


def _place(
    stream: io.BufferedReader, sample: IndexedSample, expected: str
) -> tuple[str, bool] | None:
    """A sample's first damaged place and whether it loses the sample; contents go first."""
    for member in sample.members:
        if not _intact_at(stream, member):
            return f"member {member.name} at offset {member.offset} {expected}", True
    for member in sample.members:
        start = member.offset - TAR_BLOCK
        if not _has_header_at(stream, start, member):
            return f"the header of {member.name} at offset {start} {expected}", False
    return None


def _has_header_at(stream: io.BufferedReader, start: int, member: Member) -> bool:
    """Whether a plain file of the member's size begins here; long names lie elsewhere."""
    stream.seek(start)
    try:
        info = tarfile.TarInfo.frombuf(stream.read(TAR_BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.isreg() and info.size == member.size


def _intact_at(stream: io.BufferedReader, member: Member) -> bool:
    try:
        stream.seek(member.offset)
        return is_intact(stream.read(member.size), member)
    except OSError as error:
        return _refuse_all_but_bad_blocks(error)


def _refuse_all_but_bad_blocks(error: OSError) -> bool:
    """False for a disk that cannot read a block; anything else is no damage of the data."""
    if error.errno == errno.EIO:
        return False
    raise error
