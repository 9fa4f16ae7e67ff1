"""Write defect images as WebDataset shards with an index that says what every byte should be.

A shard is a plain WebDataset tar: stock ``webdataset`` reads it. The index beside the shards
(``index.json``) holds the offset, size and sha256 of every member, because seven of twelve
ways to damage a tar raise nothing in plain reading (docs/architecture.md).
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import webdataset
from PIL import Image

from acontrol.data.images import read_image, shrink_mask
from acontrol.data.index import (
    INDEX_NAME,
    IndexedSample,
    Member,
    Shard,
    ShardIndex,
    parse_index,
)
from acontrol.data.mvtec import LabelledImage
from acontrol.errors import UserError


def webdataset_key(image: LabelledImage) -> str:
    """The sample's key: category/defect/id, with the id's dots escaped.

    WebDataset takes everything after a name's first dot for the extension.
    """
    safe = image.id.replace("%", "%25").replace(".", "%2E")
    return f"{image.category}/{image.defect}/{safe}"


def write_shards(
    images: Sequence[LabelledImage],
    out: str | os.PathLike[str],
    *,
    split: Literal["train", "test", "all"],
    resolution: int | None = 512,
    shard_size: int = 128,
    progress: Callable[[Iterable[LabelledImage]], Iterable[LabelledImage]] = iter,
) -> ShardIndex:
    """Write shards and index; the same input gives the same bytes.

    Everything is written to a folder beside ``out`` and renamed at the end, so a set that was
    interrupted never looks whole. An earlier set at ``out`` is replaced as a whole.

    Args:
        images: What to write. Samples are ordered by a hash of their key, which mixes
            categories within every shard: training shuffles within blocks of shards.
        out: Folder to create.
        split: Which part of the data this is; recorded.
        resolution: Images whose shorter side is longer are scaled down to it; None keeps all.
        shard_size: Samples a shard.
        progress: Wraps the images, to show a progress bar.

    Raises:
        UserError: If ``out`` holds something else than a set of shards, if there is nothing
            to write, or if an image or mask is bad.
    """
    out = Path(out)
    check_replaceable(out)
    if not images:
        raise UserError("no defect image to write: the folder has none in this split")
    ordered = sorted(
        images, key=lambda image: hashlib.sha256(webdataset_key(image).encode()).digest()
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as scratch:
        folder = Path(scratch, "shards")
        folder.mkdir()
        shown = iter(progress(ordered))
        shards: list[Shard] = []
        for start in range(0, len(ordered), shard_size):
            count = min(shard_size, len(ordered) - start)
            path = folder / f"shard-{len(shards):05d}.tar"
            batch = [next(shown) for _ in range(count)]
            shards.append(_write_shard(path, batch, resolution))
        for _ in shown:  # Lets a progress bar close.
            pass
        index = ShardIndex(
            split=split, resolution=resolution, num_samples=len(ordered), shards=tuple(shards)
        )
        (folder / INDEX_NAME).write_text(index.model_dump_json(indent=1) + "\n")
        replaced = Path(scratch, "replaced")
        if out.exists():
            os.rename(out, replaced)
        try:
            os.rename(folder, out)
        except BaseException:
            if replaced.exists():  # Or it would go with the scratch folder.
                os.rename(replaced, out)
            raise
    return index


def check_replaceable(out: Path) -> None:
    """Refuse to overwrite anything but an earlier set of shards or an empty folder.

    Raises:
        UserError: If ``out`` is something else, or holds anything besides such a set.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / INDEX_NAME).is_file():
        raise UserError(f"{out} exists and is no set of shards: name another --out")
    earlier = parse_index((out / INDEX_NAME).read_bytes(), str(out / INDEX_NAME))
    ours = {INDEX_NAME, *(shard.name for shard in earlier.shards)}
    strangers = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if strangers:
        raise UserError(f"{out} holds {strangers[0]} besides shards: name another --out")


def _write_shard(path: Path, images: Sequence[LabelledImage], resolution: int | None) -> Shard:
    with webdataset.TarWriter(str(path), mtime=0, encoder=False) as writer:
        for image in images:
            writer.write(_encode(image, resolution))
    members: dict[str, list[Member]] = {}
    with tarfile.open(path) as archive, path.open("rb") as stream:
        for info in archive:
            stream.seek(info.offset_data)
            content = stream.read(info.size)
            members.setdefault(_key_of(info.name), []).append(
                Member(
                    name=info.name,
                    offset=info.offset_data,
                    size=info.size,
                    sha256=hashlib.sha256(content).hexdigest(),
                )
            )
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Shard(
        name=path.name,
        size=path.stat().st_size,
        sha256=sha256,
        samples=tuple(
            IndexedSample(
                key=webdataset_key(image),
                category=image.category,
                defect=image.defect,
                members=tuple(members[webdataset_key(image)]),
            )
            for image in images
        ),
    )


def _key_of(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def _encode(image: LabelledImage, resolution: int | None) -> dict[str, bytes | str]:
    pixels = Image.fromarray(read_image(image.image))
    mask = Image.fromarray(image.read_mask())
    if resolution is not None and min(pixels.size) > resolution:
        scale = resolution / min(pixels.size)
        width, height = (max(1, round(side * scale)) for side in pixels.size)
        pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
        mask = shrink_mask(mask, (width, height))
    metadata = {
        "category": image.category,
        "defect": image.defect,
        "id": image.id,
        "caption": image.caption,
        "phrase": image.phrase,
    }
    return {
        "__key__": webdataset_key(image),
        "png": _png(pixels),
        "mask.png": _png(mask.convert("L")),
        "json": json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode(),
    }


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
