"""index.json: what every byte of a set of shards should be, and what it may say at all.

An index is trusted no further than this: it names tars beside itself and plain files inside
them, each within its tar and none twice. Nothing it says makes a reader leave its folder,
follow a link or decode anything but PNG and JSON.
"""

import hashlib
import textwrap
from collections import Counter
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from acontrol.config import Settings
from acontrol.errors import UserError, explain

INDEX_NAME = "index.json"
KINDS = ("json", "mask.png", "png")  # A sample's members; in this order they lie in the tar.
TAR_BLOCK = 512


class Member(Settings):
    """One file inside a shard."""

    # Nothing else is ever decoded: webdataset would unpickle some other endings.
    name: str = Field(pattern=r"^(.*/)?[^./]+\.(png|mask\.png|json)$")
    offset: int = Field(ge=0, description="Of the content, from the shard's first byte.")
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @property
    def kind(self) -> str:
        """What follows the name's first dot, as "mask.png"."""
        return self.name.rpartition("/")[2].split(".", 1)[1]


class IndexedSample(Settings):
    """One labelled defect image: its image, mask and JSON members."""

    key: str
    category: str
    defect: str
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        parts = self.key.split("/")
        if parts[:-1] != [self.category, self.defect] or {"", ".", ".."} & set(parts):
            raise ValueError(f"key {self.key!r} is not category/defect/id of its sample")
        if sorted(member.name for member in self.members) != [
            f"{self.key}.{kind}" for kind in KINDS
        ]:
            raise ValueError(f"{self.key!r} needs the members {', '.join(KINDS)}, each once")
        return self


class Shard(Settings):
    """One tar file."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+\.tar$")
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    samples: tuple[IndexedSample, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _members_lie_apart(self) -> Self:
        members = [member for sample in self.samples for member in sample.members]
        members.sort(key=lambda member: member.offset)
        for member in members:
            end = member.offset + member.size
            if member.offset < TAR_BLOCK or member.offset % TAR_BLOCK or end > self.size:
                raise ValueError(
                    f"{self.name}: {member.name} cannot lie at offset {member.offset} "
                    f"with {member.size} bytes in a tar of {self.size}"
                )
        for one, other in pairwise(members):
            if one.offset + one.size > other.offset:
                raise ValueError(f"{self.name}: {one.name} and {other.name} overlap")
        return self


class ShardIndex(Settings):
    """A whole set of shards."""

    format: Literal["acontrol-shards-1"] = "acontrol-shards-1"
    split: Literal["train", "test", "all"]
    resolution: int | None = Field(description="Longest short side in pixels; null: as found.")
    num_samples: int = Field(ge=1)
    shards: tuple[Shard, ...]

    @property
    def digest(self) -> str:
        """Sha256 that any change of any sample changes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        keys = (sample.key for shard in self.shards for sample in shard.samples)
        for name, times in Counter([*(shard.name for shard in self.shards), *keys]).items():
            if times > 1:
                raise ValueError(f"{name!r} is there {times} times")
        return self


def parse_index(text: str | bytes, where: str) -> ShardIndex:
    """Check an index's JSON.

    Raises:
        UserError: If it is not an index of this format.
    """
    try:
        index = ShardIndex.model_validate_json(text)
    except ValidationError as error:
        said = textwrap.shorten(explain(error), 400)  # A damaged index may hold thousands.
        raise UserError(f"{where}: not an acontrol shard index: {said}") from error
    counted = sum(len(shard.samples) for shard in index.shards)
    if counted != index.num_samples:
        raise UserError(f"{where}: lists {counted} samples but claims {index.num_samples}")
    return index
