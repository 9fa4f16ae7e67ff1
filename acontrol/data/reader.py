"""Random access to shards, each checked against its index before anything of it is used."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import fsspec
import webdataset
from PIL import Image

from acontrol.config import UserError
from acontrol.data.shards import INDEX_NAME, IndexedSample, Shard, ShardIndex, parse_index


@dataclass(frozen=True)
class Decoded:
    """A sample as it lies in its shard."""

    image: Image.Image
    mask: Image.Image
    caption: str
    phrase: str


class ShardReader:
    """Random access to the samples of a set of shards, each checked against the index.

    Local shards are read in place; others are fetched through fsspec into ``cache_dir``.
    Every shard is verified once a process, before anything of it is used.
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
        self._verified: dict[str, Path] = {}

    def _load_index(self) -> ShardIndex:
        where = f"{self.root}/{INDEX_NAME}"
        try:
            with fsspec.open(where, "rb") as stream:
                text = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.root}: no {INDEX_NAME} there; make shards with "
                f"'python -m launch.shard ROOT --out {self.root}'"
            ) from None
        return parse_index(text, where)

    def __len__(self) -> int:
        """Number of samples."""
        return self.index.num_samples

    def read(self, number: int) -> Decoded:
        """Decode one sample.

        Raises:
            UserError: If its shard is damaged; names the shard, the sample and the offset.
        """
        shard, sample = self.places[number]
        path = self._verify(shard)
        members: dict[str, bytes | str] = {"__key__": sample.key}
        with path.open("rb") as stream:
            for member in sample.members:
                stream.seek(member.offset)
                extension = member.name.rpartition("/")[2].split(".", 1)[1]
                members[extension] = stream.read(member.size)
        decoded = _decoder()(members)
        facts = decoded["json"]
        return Decoded(
            image=decoded["png"].convert("RGB"),
            mask=decoded["mask.png"].convert("1"),
            caption=facts["caption"],
            phrase=facts["phrase"],
        )

    def _verify(self, shard: Shard) -> Path:
        if shard.name not in self._verified:
            path = self._fetch(shard)
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != shard.sha256:
                raise UserError(f"{self.root}/{shard.name} is damaged: {_damage(path, shard)}")
            self._verified[shard.name] = path
        return self._verified[shard.name]

    def _fetch(self, shard: Shard) -> Path:
        filesystem, _, (remote,) = fsspec.get_fs_token_paths(f"{self.root}/{shard.name}")
        if "file" in filesystem.protocol or "local" in filesystem.protocol:
            if not os.path.isfile(remote):
                raise UserError(f"{remote}: the index lists this shard but it is not there")
            return Path(remote)
        folder = self.cache_dir or os.path.join(tempfile.gettempdir(), "acontrol-shards")
        path = Path(folder, f"{shard.sha256}.tar")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                filesystem.get_file(remote, os.path.join(scratch, "shard"))
                os.replace(os.path.join(scratch, "shard"), path)
        return path


@lru_cache(maxsize=1)
def _decoder() -> webdataset.autodecode.Decoder:
    return webdataset.autodecode.Decoder([webdataset.autodecode.imagehandler("pil")])


def _damage(path: Path, shard: Shard) -> str:
    """Say which sample is the first whose bytes are not the index's."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        for sample in shard.samples:
            for member in sample.members:
                stream.seek(member.offset)
                content = stream.read(member.size)
                if hashlib.sha256(content).hexdigest() != member.sha256:
                    return (
                        f"sample {sample.key}, member {member.name} at offset "
                        f"{member.offset} (file of {size} bytes, {shard.size} expected)"
                    )
    return f"between its members (file of {size} bytes, {shard.size} expected)"
