"""One product's folder as it is written, and the record of where each image came from.

The folder appears complete (`acontrol.data.publish`); the same import again finds its record.
"""

import hashlib
import json
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.images import encode_png
from acontrol.data.importing.settings import ImportConfig
from acontrol.data.importing.source import SourceImage
from acontrol.data.listing import MASK_ENDINGS, is_junk
from acontrol.data.publish import check_new
from acontrol.errors import UserError
from acontrol.messages import counted

RECORD = "import.json"
COMBINED = "combined"  # MVTec AD's own name for images of several defects.
_FORM = "acontrol-import-1"
_FEW = 3  # The default split takes the first third.
_LEFT_OUT = {
    "boxes": "boxes alone, which say where a defect is and not which pixels it has "
    "(--boxes-as-masks fills them)",
    "some boxes": "boxes beside outlines, which would not cover all defects "
    "(--boxes-as-masks fills them)",
    "lines": "lines, which have no area (--line-width PX draws them)",
    "points": "lines or points, which have no area",
    "unmarked": "no annotation (--unmarked leave-out)",
    "bad": "an error, see above",
}


@dataclass
class CategoryOutput:
    """What becomes of one product's images.

    Attributes:
        name: The product.
        place: Where its folder will be.
        work: Where it is written until then; None to write nothing.
        rows: A record of each image.
        left_out: A record of each other.
        ids: The images' names in use, by folder, as file systems compare them.
        counts: How many annotations there are of each class of the source.
        notes: What was read and may not be what was meant.
    """

    name: str
    place: Path
    work: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    ids: dict[tuple[str, str], str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


def write(
    category: CategoryOutput,
    image: SourceImage,
    defect: str,
    mask: npt.NDArray[np.bool_] | None,
    classes: Mapping[str, int],
) -> None:
    """Copy an image, and write its mask.

    Args:
        category: The product; if it has no ``work``, this is only recorded.
        image: The image.
        defect: Its folder.
        mask: (H, W); None for a good image.
        classes: How many annotations of each class it has.

    Raises:
        UserError: If it has no name of its own.
    """
    part = f"{image.part}/good" if mask is None else f"test/{defect}"
    name = _id(category, part, image)
    row: dict[str, Any] = {
        "source": image.name,
        "image": f"{part}/{name}{image.image.suffix}",
        "defect": None if mask is None else defect,
        "classes": dict(classes),
    }
    category.rows.append(row)
    if category.work is None:
        return
    target = category.work / row["image"]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image.image, target)
    if mask is not None:
        truth = category.work / "ground_truth" / defect / f"{name}_mask.png"
        truth.parent.mkdir(parents=True, exist_ok=True)
        truth.write_bytes(encode_png(Image.fromarray(mask.astype(np.uint8) * 255)))


def _id(category: CategoryOutput, part: str, image: SourceImage) -> str:
    """A name that no other image in its folder has: its own, or with its folders before it."""
    path = Path(image.name)
    stem = path.stem
    names = (stem, "__".join([*path.parts[:-1], stem]), f"{stem}_{path.suffix[1:]}")
    for name in names:
        key = (part, unicodedata.normalize("NFC", name).casefold())
        if key not in category.ids and not _looks_like_mask(category, part, key[1]):
            if is_junk(name):
                raise UserError(f"{image.image}: is hidden by its name; rename it")
            category.ids[key] = image.name
            return name
    other = category.ids.get((part, unicodedata.normalize("NFC", stem).casefold()), "another")
    raise UserError(
        f"{image.image}: has the name of {other}, or looks like its mask; rename it"
    )


def _looks_like_mask(category: CategoryOutput, part: str, name: str) -> bool:
    """Whether a name and another of its folder are read as an image and its mask."""
    return any(
        (name.endswith(ending) and (part, name.removesuffix(ending)) in category.ids)
        or (part, f"{name}{ending}") in category.ids
        for ending in MASK_ENDINGS
    )


def source_digest(images: Iterable[SourceImage]) -> str:
    """A digest of which files there are, and when they changed."""
    files = {file for image in images for file in (image.image, *image.files)}
    digest = hashlib.sha256()
    for file in sorted(files):
        try:
            about = file.stat()
            stamp = (about.st_size, about.st_mtime_ns)
        except OSError:
            stamp = (0, 0)
        digest.update(f"{file.name}\0{stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _settings(config: ImportConfig) -> dict[str, Any]:
    left = {"out", "dry_run", "source", "images", "masks"}
    return config.model_dump(mode="json", exclude=left) | {
        "source": str(config.source.resolve()),
        "images": config.images and str(config.images.resolve()),
        "masks": config.masks and str(config.masks.resolve()),
    }


def stands(place: Path, config: ImportConfig, digest: str) -> bool:
    """Whether the same import is already there; prints what it holds.

    Raises:
        UserError: If another is.
    """
    file = place / RECORD
    if not file.exists():
        if not config.dry_run:
            check_new(place)
        return False
    try:
        record = json.loads(file.read_bytes())
        same = record["settings"] == _settings(config)
        report = [str(line) for line in record["report"]]
        unchanged = record["source_digest"] == digest
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: is damaged; remove {place}, or name another --out") from error
    if config.dry_run:
        return False
    if not same or not unchanged:
        what = "with other settings" if not same else "before its files changed"
        raise UserError(
            f"{place}: was imported {what}; remove it to import again, or name another --out"
        )
    print("\n".join([f"Nothing to do: {place} is complete", *report]))
    return True


def write_record(category: CategoryOutput, config: ImportConfig, digest: str) -> None:
    """Write what was imported, how, and from which files."""
    if category.work is None or not category.rows:
        return
    record = {
        "format": _FORM,
        "settings": _settings(config),
        "source_digest": digest,
        "report": report(category),
        "images": category.rows,
        "left_out": category.left_out,
    }
    text = json.dumps(record, indent=1, ensure_ascii=True)
    (category.work / RECORD).write_text(f"{text}\n", encoding="utf-8")


def report(category: CategoryOutput) -> list[str]:
    """How many images there are of each defect, and why others are left out."""
    lines = [f"{category.name}:"]
    counts = Counter(row["image"].rpartition("/")[0] for row in category.rows)
    for folder, count in sorted(
        counts.items(), key=lambda item: (item[0] != "train/good", item)
    ):
        masks = "" if folder.endswith("/good") else f", {counted(count, 'mask')}"
        images = "image" if count == 1 else "images"
        lines.append(f"  {folder:<24}{count:>6} {images}{masks}")
    if mixed := [row for row in category.rows if row["defect"] == COMBINED]:
        kinds = Counter(" + ".join(sorted(row["classes"])) for row in mixed)
        shown = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(4))
        lines.append(f"  {COMBINED}: images of several classes ({shown})")
    lines += [f"  left out: {reason}" for reason in reasons([category])]
    if count := category.notes["filled"]:
        boxes = counted(count, "box is", "boxes are")
        lines.append(f"  {boxes} filled: these masks hold good pixels too")
    if count := category.notes["void"]:
        lines.append(
            f"  {counted(count, 'mask has', 'masks have')} pixels marked as unknown (255), "
            "which count as good"
        )
    few = [
        folder.removeprefix("test/")
        for folder, count in sorted(counts.items())
        if count < _FEW and not folder.endswith("/good")
    ]
    if few:
        lines.append(
            f"  fewer than {_FEW} images of {', '.join(few)}: shard needs --split all, or more"
        )
    return lines


def reasons(categories: Sequence[CategoryOutput]) -> list[str]:
    """Why images are left out, with a count each."""
    counts = Counter(row["why"] for category in categories for row in category.left_out)
    return [
        f"{counted(counts[why], 'image')} with {text}"
        for why, text in _LEFT_OUT.items()
        if counts[why]
    ]
