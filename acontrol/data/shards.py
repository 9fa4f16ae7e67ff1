"""Write defect images as WebDataset shards, with an index of every member.

A shard is a plain WebDataset tar that stock ``webdataset`` reads. The index next to the shards
(``index.json``) holds the offset, size and sha256 of every member, because plain reading
misses seven of twelve ways to damage a tar (docs/architecture.md).
"""

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import webdataset
from PIL import Image

from acontrol.config import THIRD
from acontrol.data.images import encode_png, read_image, shrink_mask
from acontrol.data.index import (
    INDEX_NAME,
    IndexedSample,
    Member,
    Shard,
    ShardIndex,
    parse_index,
)
from acontrol.data.mvtec import LabelledImage
from acontrol.data.publish import WORK, check_new, put_in_place, work_folder
from acontrol.errors import UserError, naming


def webdataset_key(image: LabelledImage) -> str:
    """The sample's key: category/defect/id, with the id's dots escaped.

    To WebDataset, everything after a name's first dot is the extension.
    """
    safe = image.id.replace("%", "%25").replace(".", "%2E")
    return f"{image.category}/{image.defect}/{safe}"


def write_shards(
    images: Sequence[LabelledImage],
    out: str | os.PathLike[str],
    *,
    split: Literal["train", "test", "all"],
    split_digest: str = THIRD,
    resolution: int | None = 512,
    shard_size: int = 128,
    progress: Callable[[Iterable[LabelledImage]], Iterable[LabelledImage]] = iter,
) -> ShardIndex:
    """Write shards and index; the same input gives the same bytes.

    Everything is written elsewhere and put in place at the end, so an interrupted set never
    looks complete (`acontrol.data.publish`). An earlier set at ``out`` is replaced.

    Args:
        images: The images. Samples are ordered by a hash of their key, which mixes categories
            within each shard: training shuffles within blocks of shards.
        out: Folder to create.
        split: Recorded in the index.
        split_digest: Recorded in the index.
        resolution: Longest shorter side; larger images are scaled down. None keeps the size.
        shard_size: Samples per shard.
        progress: Wraps the images, to show a progress bar.

    Raises:
        UserError: If ``out`` holds anything but shards, there are no images, or an image or
            mask is bad.
    """
    out = Path(out).expanduser()
    check_replaceable(out)
    require_some(images)
    ordered = sorted(
        images, key=lambda image: hashlib.sha256(webdataset_key(image).encode()).digest()
    )
    place = work_folder(out).parent
    place.mkdir(parents=True, exist_ok=True)
    with (
        naming(out),
        tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=place) as scratch,
    ):
        folder = Path(scratch, "shards")
        folder.mkdir()
        remaining = iter(progress(ordered))
        shards: list[Shard] = []
        for start in range(0, len(ordered), shard_size):
            count = min(shard_size, len(ordered) - start)
            path = folder / f"shard-{len(shards):05d}.tar"
            batch = [next(remaining) for _ in range(count)]
            shards.append(_write_shard(path, batch, resolution))
        for _ in remaining:  # Lets a progress bar close.
            pass
        index = ShardIndex(
            split=split,
            split_digest=split_digest,
            resolution=resolution,
            num_samples=len(ordered),
            shards=tuple(shards),
        )
        (folder / INDEX_NAME).write_text(index.model_dump_json(indent=1) + "\n")
        replaced = Path(scratch, "replaced")
        replaced.mkdir()
        earlier = _earlier_files(out)
        try:
            for name in earlier:
                os.rename(out / name, replaced / name)
            put_in_place(folder, out, last=INDEX_NAME)
        except BaseException:
            out.mkdir(exist_ok=True)
            for name in reversed(earlier):  # Deleted with the scratch folder otherwise.
                if (replaced / name).exists():
                    os.rename(replaced / name, out / name)
            raise
    return index


def require_some(images: Sequence[LabelledImage]) -> None:
    """Refuse an empty set.

    Raises:
        UserError: If there is no image.
    """
    if not images:
        raise UserError("no defect image to write: the folder has none in this split")


def check_replaceable(out: Path) -> None:
    """Refuse to overwrite anything but an earlier set of shards or an empty folder.

    Raises:
        UserError: If ``out`` is or holds anything else.
    """
    if not (out / INDEX_NAME).is_file():
        check_new(out)
        return
    ours = _earlier_files(out)
    others = sorted(
        path.name for path in out.iterdir() if path.name not in ours and WORK not in path.name
    )
    if others:
        raise UserError(f"{out} holds {others[0]} besides shards: name another --out")


def _earlier_files(out: Path) -> list[str]:
    """The names of a set's files, the index first: without it they are no set."""
    if not (out / INDEX_NAME).is_file():
        return []
    earlier = parse_index((out / INDEX_NAME).read_bytes(), str(out / INDEX_NAME))
    return [INDEX_NAME, *(shard.name for shard in earlier.shards)]


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
        "png": encode_png(pixels),
        "mask.png": encode_png(mask.convert("L")),
        "json": json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode(),
    }
