"""Random access to the samples of shards, each checked against the index before use."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image
from pydantic import ValidationError
from webdataset.autodecode import Decoder, DecodingError, handle_extension

from acontrol.config import Settings, check_scheme
from acontrol.data import near_misses
from acontrol.data.images import opened
from acontrol.data.index import INDEX_NAME, IndexedSample, Shard, ShardIndex, parse_index
from acontrol.data.integrity import Damage, find_shard_damage, is_intact
from acontrol.data.mvtec import is_category
from acontrol.errors import UserError, explain

# webdataset's default decoders go by a member's extension: they unpickle some, load others by
# torch and unpack .gz. Pillow goes by the content and starts Ghostscript for one format. Only
# two decoders are registered here: PNG and JSON.


@dataclass(frozen=True)
class Decoded:
    """A decoded sample."""

    image: Image.Image
    mask: Image.Image
    caption: str
    phrase: str


class SampleMetadata(Settings):
    """A sample's JSON."""

    category: str
    defect: str
    id: str
    caption: str
    phrase: str


def decode(sample: IndexedSample, contents: dict[str, bytes], path: str) -> Decoded:
    """Decode a sample's members.

    Args:
        sample: The index entry.
        contents: Bytes by the member's kind: "png", "mask.png", "json".
        path: The shard, for messages.

    Raises:
        UserError: If a member does not have its name's format, mask and image differ in size,
            or the JSON belongs to another sample.
    """
    offsets = {member.kind: member.offset for member in sample.members}

    def refusal(kind: str, reason: str) -> UserError:
        return UserError(
            f"{path}: sample {sample.key}, member {sample.key}.{kind} at offset "
            f"{offsets[kind]}: {reason}; make the shards again with acontrol shard"
        )

    try:
        decoded = _decoder()(contents)
    except DecodingError as error:
        raise refusal(error.k, " ".join(str(error.__cause__).split())) from error
    image, mask = decoded["png"], decoded["mask.png"]
    try:
        metadata = SampleMetadata.model_validate(decoded["json"])
    except ValidationError as error:
        raise refusal("json", explain(error)) from error
    if (metadata.category, metadata.defect) != (sample.category, sample.defect):
        raise refusal("json", f"it is of {metadata.category}/{metadata.defect}")
    if mask.size != image.size:
        raise refusal("mask.png", f"it is {mask.size} and its image {image.size} pixels")
    levels = mask.convert("L").getcolors(2) or []
    if {level for _, level in levels} not in ({0, 255}, {255}):
        raise refusal("mask.png", "it needs 255 on the defect, 0 elsewhere and nothing else")
    return Decoded(image.convert("RGB"), mask.convert("1"), metadata.caption, metadata.phrase)


@lru_cache(maxsize=1)
def _decoder() -> Decoder:
    handlers = [handle_extension("png", _png), handle_extension("json", json.loads)]
    return Decoder(handlers, pre=[], post=[])


def _png(content: bytes) -> Image.Image:
    with opened(io.BytesIO(content), ("PNG",)) as image:
        image.load()
        return image.copy()


class ShardReader:
    """Random access to the samples of a set of shards, each checked against the index.

    Local shards are read in place; others are fetched through fsspec into ``cache_dir``. A
    shard is verified once per process, before its first use, and a member at each read.

    Attributes:
        index: The index of the set.
        places: Shard and index entry of each sample, by its number.
        usable: (num_samples,) bool; False for skipped samples.
        skipped: Keys of skipped samples, in the index's order.
    """

    def __init__(self, root: str, cache_dir: str | None = None):
        """Open a set by the folder or URI of its index.

        Raises:
            UserError: If the index is missing or malformed.
        """
        self.root = root.rstrip("/")
        self.cache_dir = cache_dir
        self.index = self._load_index()
        self.places: list[tuple[Shard, IndexedSample]] = [
            (shard, sample) for shard in self.index.shards for sample in shard.samples
        ]
        self.usable = np.ones(len(self.places), dtype=bool)
        self.skipped: tuple[str, ...] = ()
        self._verified: dict[str, Path] = {}
        self._damaged_shards: set[str] | None = None  # None before ``skip``.

    def _load_index(self) -> ShardIndex:
        path = f"{self.root}/{INDEX_NAME}"
        try:
            check_scheme(self.root)
            with fsspec.open(path, "rb") as stream:
                text = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            local = None if "://" in self.root else Path(self.root)
            if local is not None and (found := near_misses.of_shards(local, is_category)):
                raise UserError(found) from None
            raise UserError(
                f"{self.root}: no {INDEX_NAME} there; make shards with "
                f"'acontrol shard ROOT --out {self.root}'"
            ) from None
        except (ImportError, ValueError) as error:  # A scheme whose package is not installed.
            raise UserError(f"shards {self.root}: {error}") from error
        return parse_index(text, path)

    def __len__(self) -> int:
        """Number of samples, including skipped ones."""
        return self.index.num_samples

    @property
    def skipped_digest(self) -> str:
        """Sha256 of the skipped keys; empty if there are none."""
        if not self.skipped:
            return ""
        return hashlib.sha256(json.dumps(sorted(self.skipped)).encode()).hexdigest()

    def skip(self, damage: Sequence[Damage]) -> None:
        """Skip lost samples, and read the others of damaged shards by offset.

        Args:
            damage: All damage of the set.
        """
        lost = {place.key for place in damage if place.lost}
        keys = [sample.key for _, sample in self.places]
        self.usable = np.array([key not in lost for key in keys])
        self.skipped = tuple(key for key in keys if key in lost)
        self._damaged_shards = {place.shard for place in damage}
        self._verified.clear()

    def read(self, number: int) -> Decoded:
        """Decode one sample.

        Raises:
            UserError: If its shard is damaged.
        """
        shard, sample = self.places[number]
        if not self.usable[number]:
            raise ValueError(f"sample {sample.key} is skipped")
        name = f"{self.root}/{shard.name}"
        contents = {}
        with self._verify(shard).open("rb") as stream:
            for member in sample.members:
                stream.seek(member.offset)
                contents[member.kind] = stream.read(member.size)
                if not is_intact(contents[member.kind], member):
                    raise UserError(
                        f"{name} is damaged: sample {sample.key}, member {member.name} at "
                        f"offset {member.offset} no longer matches the index"
                    )
        return decode(sample, contents, name)

    def _verify(self, shard: Shard) -> Path:
        if shard.name not in self._verified:
            try:
                path, damage = self.inspect(shard)
            except OSError as error:
                raise UserError(
                    f"{self.root}/{shard.name}: cannot be read ({error.strerror or error})"
                ) from error
            expected = self._damaged_shards is not None and shard.name in self._damaged_shards
            if path is None or (damage and not expected):
                since = "" if self._damaged_shards is None else " since this run's check"
                raise UserError(
                    f"{self.root}/{shard.name} is damaged{since}: {damage[0].place}"
                )
            self._verified[shard.name] = path
        return self._verified[shard.name]

    def inspect(self, shard: Shard) -> tuple[Path | None, list[Damage]]:
        """A shard's local file, None if it is missing, and all its damage.

        A damaged copy in the cache is fetched again: the set itself may be intact.
        """
        path, was_cached = self._fetch(shard)
        damage = find_shard_damage(path, shard)
        if damage and was_cached and path is not None:
            path.unlink(missing_ok=True)
            path, _ = self._fetch(shard)
            damage = find_shard_damage(path, shard)
        return path, damage

    def _fetch(self, shard: Shard) -> tuple[Path | None, bool]:
        """The local file, and whether it was in the cache already."""
        filesystem, _, (remote,) = fsspec.get_fs_token_paths(f"{self.root}/{shard.name}")
        if "file" in filesystem.protocol or "local" in filesystem.protocol:
            return (Path(remote) if os.path.isfile(remote) else None), False
        folder = self.cache_dir or os.path.join(tempfile.gettempdir(), "acontrol-shards")
        path = Path(folder, f"{shard.sha256}.tar")
        if path.is_file():
            return path, True
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            try:
                filesystem.get_file(remote, os.path.join(scratch, "shard"))
            except FileNotFoundError:
                return None, False
            os.replace(os.path.join(scratch, "shard"), path)
        return path, False
