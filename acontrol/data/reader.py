"""Random access to the samples of shards, each checked against the index before it is used."""

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
from acontrol.data.images import opened
from acontrol.data.index import INDEX_NAME, IndexedSample, Shard, ShardIndex, parse_index
from acontrol.data.integrity import Damaged, damage_of, is_intact
from acontrol.errors import UserError, explain

# webdataset's own decoders go by a member's ending and would unpickle some, load others with
# torch and unpack .gz; Pillow's go by the content and would start Ghostscript for one. So
# webdataset's stage is given exactly two of them here, without its defaults: PNG and JSON.


@dataclass(frozen=True)
class Decoded:
    """A sample as it lies in its shard."""

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


def decode(sample: IndexedSample, contents: dict[str, bytes], where: str) -> Decoded:
    """Turn members into picture, mask and words.

    Args:
        sample: What the index says of it.
        contents: Bytes by the member's kind: "png", "mask.png", "json".
        where: The shard, for messages.

    Raises:
        UserError: If a member is not what its name says, mask and image do not fit, or the
            JSON is of another sample; names shard, member and offset.
    """
    offsets = {member.kind: member.offset for member in sample.members}

    def refusal(kind: str, reason: str) -> UserError:
        return UserError(
            f"{where}: sample {sample.key}, member {sample.key}.{kind} at offset "
            f"{offsets[kind]}: {reason}; make the shards again with launch.shard"
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

    Local shards are read in place; others are fetched through fsspec into ``cache_dir``.
    Every shard is verified once a process, before anything of it is used, and every member
    each time that it is read.

    Attributes:
        index: What the set should be.
        places: Shard and entry of each sample; a sample's number is its place here.
        usable: (num_samples,) bool; False for what ``skip`` left out.
        skipped: Keys of what it left out, in the index's order.
    """

    def __init__(self, root: str, cache_dir: str | None = None):
        """Open a set by the folder or URI of its index.

        Raises:
            UserError: If there is no index, or it is not one.
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
        self._read_in_part: set[str] | None = None  # Shards; None before ``skip``.

    def _load_index(self) -> ShardIndex:
        where = f"{self.root}/{INDEX_NAME}"
        try:
            check_scheme(self.root)
            with fsspec.open(where, "rb") as stream:
                text = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.root}: no {INDEX_NAME} there; make shards with "
                f"'python -m launch.shard ROOT --out {self.root}'"
            ) from None
        except (ImportError, ValueError) as error:  # A scheme whose package is not installed.
            raise UserError(f"shards {self.root}: {error}") from error
        return parse_index(text, where)

    def __len__(self) -> int:
        """Number of samples, with those that are skipped."""
        return self.index.num_samples

    @property
    def skipped_digest(self) -> str:
        """Sha256 over the skipped keys; empty if there are none."""
        if not self.skipped:
            return ""
        return hashlib.sha256(json.dumps(sorted(self.skipped)).encode()).hexdigest()

    def skip(self, found: Sequence[Damaged]) -> None:
        """Leave out damaged samples, and read what is whole in damaged shards by offset.

        Args:
            found: All that is damaged.
        """
        lost = {place.key for place in found if place.lost}
        keys = [sample.key for _, sample in self.places]
        self.usable = np.array([key not in lost for key in keys])
        self.skipped = tuple(key for key in keys if key in lost)
        self._read_in_part = {place.shard for place in found}
        self._verified.clear()

    def read(self, number: int) -> Decoded:
        """Decode one sample.

        Raises:
            UserError: If its shard is damaged; names the shard, the sample and the offset.
        """
        shard, sample = self.places[number]
        if not self.usable[number]:
            raise ValueError(f"sample {sample.key} is skipped")
        where = f"{self.root}/{shard.name}"
        path = self._verify(shard)
        contents = {}
        with path.open("rb") as stream:
            for member in sample.members:
                stream.seek(member.offset)
                contents[member.kind] = stream.read(member.size)
                if not is_intact(contents[member.kind], member):
                    raise UserError(
                        f"{where} is damaged: sample {sample.key}, member {member.name} at "
                        f"offset {member.offset} is not what the index says any more"
                    )
        return decode(sample, contents, where)

    def _verify(self, shard: Shard) -> Path:
        if shard.name not in self._verified:
            try:
                path, found = self.inspect(shard)
            except OSError as error:
                raise UserError(
                    f"{self.root}/{shard.name}: cannot be read ({error.strerror or error})"
                ) from error
            known = self._read_in_part is not None and shard.name in self._read_in_part
            if path is None or (found and not known):
                since = "" if self._read_in_part is None else " since this run's check"
                raise UserError(f"{self.root}/{shard.name} is damaged{since}: {found[0].place}")
            self._verified[shard.name] = path
        return self._verified[shard.name]

    def inspect(self, shard: Shard) -> tuple[Path | None, list[Damaged]]:
        """A shard's local file, None if the set lacks it, and all that is damaged in it.

        A damaged copy in the cache is fetched once more: the set itself may be whole.
        """
        path, is_old = self._fetch(shard)
        found = damage_of(path, shard)
        if found and is_old and path is not None:
            path.unlink(missing_ok=True)
            path, _ = self._fetch(shard)
            found = damage_of(path, shard)
        return path, found

    def _fetch(self, shard: Shard) -> tuple[Path | None, bool]:
        """The local file, and whether it is a copy that was there before."""
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
