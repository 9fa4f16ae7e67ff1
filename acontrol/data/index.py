"""index.json: the schema and validation of a set of shards.

An index is not trusted: it may only name tars next to itself and plain files inside them, each
within its tar and none twice. It cannot make a reader leave its folder, follow a link or decode
anything but PNG and JSON.
"""

import hashlib
import textwrap
from collections import Counter
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from acontrol.config import THIRD, Settings, TrainedOn
from acontrol.errors import UserError, explain
from acontrol.messages import counted

INDEX_NAME = "index.json"
KINDS = ("json", "mask.png", "png")  # A sample's members, in the tar's order.
TAR_BLOCK = 512


class Member(Settings):
    """One file inside a shard."""

    # Nothing else is decoded: webdataset would unpickle some other extensions.
    name: str = Field(pattern=r"^(.*/)?[^./]+\.(png|mask\.png|json)$")
    offset: int = Field(ge=0, description="Of the content, from the start of the shard.")
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @property
    def kind(self) -> str:
        """The name after its first dot, such as "mask.png"."""
        return self.name.rpartition("/")[2].split(".", 1)[1]


class IndexedSample(Settings):
    """One labelled defect image: its image, mask and JSON members."""

    key: str
    category: str
    defect: str
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
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
    def _members_do_not_overlap(self) -> Self:
        members = [member for sample in self.samples for member in sample.members]
        members.sort(key=lambda member: member.offset)
        for member in members:
            end = member.offset + member.size
            if member.offset < TAR_BLOCK or member.offset % TAR_BLOCK or end > self.size:
                raise ValueError(
                    f"{self.name}: {member.name} cannot be at offset {member.offset} "
                    f"with {member.size} bytes in a tar of {self.size}"
                )
        for member, following in pairwise(members):
            if member.offset + member.size > following.offset:
                raise ValueError(f"{self.name}: {member.name} and {following.name} overlap")
        return self


class ShardIndex(Settings):
    """A set of shards."""

    format: Literal["acontrol-shards-1"] = "acontrol-shards-1"
    split: Literal["train", "test", "all"]
    split_digest: str = Field(
        THIRD, description="Which images are 'train': 'third', or a split file's checksum."
    )
    resolution: int | None = Field(description="Longest short side in pixels; null: unscaled.")
    num_samples: int = Field(ge=1)
    shards: tuple[Shard, ...]

    @model_serializer(mode="wrap")
    def _without_the_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Shards of the first third have the bytes and the digest from before split files."""
        values: dict[str, Any] = handler(self)
        if self.split_digest == THIRD:
            values.pop("split_digest", None)
        return values

    @property
    def trained_on(self) -> TrainedOn:
        """The record of weights that come from these shards."""
        categories = {sample.category for shard in self.shards for sample in shard.samples}
        return TrainedOn(
            categories=tuple(sorted(categories)),
            split=self.split,
            split_digest=self.split_digest,
        )

    @property
    def digest(self) -> str:
        """Sha256 of the index, and so of every sample."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        keys = (sample.key for shard in self.shards for sample in shard.samples)
        for name, count in Counter([*(shard.name for shard in self.shards), *keys]).items():
            if count > 1:
                raise ValueError(f"{name!r} is listed {count} times")
        return self


def parse_index(text: str | bytes, path: str) -> ShardIndex:
    """Validate an index's JSON.

    Raises:
        UserError: If it is not an index of this format.
    """
    try:
        index = ShardIndex.model_validate_json(text)
    except ValidationError as error:
        errors = textwrap.shorten(explain(error), 400)  # A damaged index may have thousands.
        raise UserError(f"{path}: not an acontrol shard index: {errors}") from error
    count = sum(len(shard.samples) for shard in index.shards)
    if count != index.num_samples:
        raise UserError(
            f"{path}: lists {counted(count, 'sample')} but claims {index.num_samples}"
        )
    return index
