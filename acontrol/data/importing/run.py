"""Annotated images become folders in MVTec AD's layout: read, checked, written, put in place.

ROOT/<category>/train/good/*            images without a defect
ROOT/<category>/test/<defect>/*         images of one class of defect, byte for byte
ROOT/<category>/test/combined/*         images of several
ROOT/<category>/ground_truth/<defect>/<id>_mask.png
ROOT/<category>/import.json             where each came from, and what was left out
"""

import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from acontrol.data.images import check_image, image_size, read_image
from acontrol.data.importing import class_masks, coco, labelme, loco, voc
from acontrol.data.importing.output import (
    COMBINED,
    RECORD,
    CategoryOutput,
    reasons,
    report,
    source_digest,
    stands,
    write,
    write_record,
)
from acontrol.data.importing.settings import USES, ImportConfig
from acontrol.data.importing.source import GOOD, Annotations, Box, Source, SourceImage, is_good
from acontrol.data.listing import is_junk, only
from acontrol.data.overlap import refuse_overlap
from acontrol.data.publish import check_new, put_in_place, work_folder
from acontrol.errors import UserError
from acontrol.messages import counted, print_note

READERS: Mapping[str, Callable[[ImportConfig], Source]] = {
    "labelme": labelme.read,
    "coco": coco.read,
    "voc-masks": voc.read,
    "class-masks": class_masks.read,
    "loco": loco.read,
}
_LEVEL = re.compile(r"\d+|[0-9a-f]{6}")


def import_annotations(config: ImportConfig) -> None:
    """Import a source's images and annotations, all of them or none.

    Prints how many there are of each defect; what is left out goes to standard error.

    Raises:
        UserError: If the source is bad, or something is ambiguous, or ``out`` holds another
            import.
    """
    _check(config)
    source = READERS[config.format](config)
    if source.bad and not config.skip_bad:
        raise UserError(source.bad[0])
    _require_names(config, source)
    categories = []
    for name, images in sorted(source.categories.items()):
        place = Path("." if config.out is None else config.out) / name
        digest = source_digest(images)
        if config.out is not None and stands(place, config, digest):
            continue
        work = None if config.dry_run else work_folder(place)
        categories.append((CategoryOutput(name, place, work), images, digest))
    if not categories and source.categories:
        return
    try:
        for category, images, _ in categories:
            _import_category(category, images, source, config)
        for message in source.bad:
            print(f"left out: {message}", file=sys.stderr)
        if not any(category.rows for category, _, _ in categories):
            why = "; ".join(reasons([c for c, _, _ in categories])) or "it holds none"
            raise UserError(f"{config.source}: no image to import: {why}")
        for category, _, digest in categories:
            write_record(category, config, digest)
        for category, _, _ in categories:
            if category.work is not None and category.rows:
                put_in_place(category.work, category.place, last=RECORD)
    finally:
        for category, _, _ in categories:
            if category.work is not None:
                shutil.rmtree(category.work, ignore_errors=True)
        _remove_empty(config.out)
    for category, _, _ in categories:
        print("\n".join(report(category)))
    for note in [*source.notes, *_unused(config, [c for c, _, _ in categories])]:
        print_note(note)
    total = sum(len(category.rows) for category, _, _ in categories)
    if config.dry_run:
        print(f"dry run: {counted(total, 'image')} would be imported; nothing written")
    else:
        print(f"{counted(total, 'image')}: {config.out}")


def _check(config: ImportConfig) -> None:
    """Refuse settings that do not go together, and places that cannot be."""
    if config.out is None and not config.dry_run:
        raise UserError("--out ROOT is needed: where the categories go (or --dry-run)")
    for name, formats in USES.items():
        if name in config.model_fields_set and config.format not in formats:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for {' and '.join(formats)}, not for {config.format}")
    if not config.source.exists():
        raise UserError(f"{config.source}: does not exist; give what holds the annotations")
    if not config.source.is_dir() and config.format not in ("coco", "class-masks"):
        raise UserError(f"{config.source}: is not a folder; give that of the annotations")
    folder = config.source if config.source.is_dir() else config.source.parent
    inputs = {"SOURCE": folder, "--images": config.images, "--masks": config.masks}
    refuse_overlap(config.out, "--out", inputs)


def _require_names(config: ImportConfig, source: Source) -> None:
    """Refuse names of products and defects that cannot be those of folders."""
    for name in source.categories:
        if problem := _not_a_folder(name):
            raise UserError(f"the category {name!r} {problem}: name it with --category")
    for label, defect in config.names.items():
        if problem := _not_a_folder(defect):
            raise UserError(f"--classes {label}={defect}: the name {problem}")


def _not_a_folder(name: str) -> str | None:
    """What is wrong with a name of a product or a defect; None if nothing is."""
    if name.casefold() in GOOD:
        return "means that there is no defect"
    if not name or name != name.strip() or name.endswith("."):
        return "is empty or ends in a space or a dot"
    if any(character in '/\\:*?"<>|' or not character.isprintable() for character in name):
        return "holds a character that names of folders may not have"
    if is_junk(name):
        return "is hidden, or a system's own"
    if len(name.encode("utf-8", "replace")) > 150:
        return "is too long"
    return None


def _import_category(
    category: CategoryOutput,
    images: Sequence[SourceImage],
    source: Source,
    config: ImportConfig,
) -> None:
    """Read each image and what is drawn on it, and write both."""
    if category.work is not None:
        check_new(category.place)
        shutil.rmtree(category.work, ignore_errors=True)
        category.work.mkdir(parents=True)
    for image in _progress(images, category.name):
        try:
            _import_image(category, image, source, config)
        except UserError as error:
            if not config.skip_bad or isinstance(error, _UndecidedError):
                raise
            source.bad.append(str(error))
            category.left_out.append({"source": image.name, "why": "bad", "error": str(error)})


class _UndecidedError(UserError):
    """Something that only the user can decide, for all images at once."""


def _import_image(
    category: CategoryOutput, image: SourceImage, source: Source, config: ImportConfig
) -> None:
    only(image.image.stem, [image.image], image.image.parent)  # Its format and name.
    size = image_size(image.image)
    found = _meant(image, size, source, config, category)
    marked = bool(found.masks or found.boxes or found.lines)
    good = image.good or (image.good is None and is_good(image.name))
    if marked and good:
        label = next(iter([*found.masks, *(box.label for box in found.boxes), *found.lines]))
        raise UserError(
            f"{image.image}: is among good images, and annotated as {label!r}; move it, or "
            "remove the annotation"
        )
    if not marked:
        if image.good is False:
            raise UserError(
                f"{image.image}: is among defects, and has none marked; mark it, or remove "
                "the image"
            )
        if not (good or found.said or config.unmarked):
            raise _UndecidedError(
                f"{image.image}: has no annotation, and nothing says that it is good: give "
                "--unmarked good, or --unmarked leave-out if it is only not annotated yet"
            )
        if not (good or found.said) and config.unmarked == "leave-out":
            category.left_out.append({"source": image.name, "why": "unmarked"})
            return
        read_image(image.image)
        write(category, image, "good", None, {})
        return
    if found.boxes or found.lines:
        category.left_out.append(_without_area(image, found, config))
        return
    check_image(image.image)
    (defect,) = found.masks if len(found.masks) == 1 else (COMBINED,)
    mask = np.logical_or.reduce(list(found.masks.values()))
    if found.void:
        category.notes["void"] += 1
    write(category, image, defect, mask, found.counts)


def _meant(
    image: SourceImage,
    size: tuple[int, int],
    source: Source,
    config: ImportConfig,
    category: CategoryOutput,
) -> Annotations:
    """An image's annotations under the names of defects, without ignored classes."""
    found = image.read(size)
    names = config.names
    labels = {*found.masks, *(box.label for box in found.boxes), *found.lines}
    defects: dict[str, str] = {}
    for label in sorted(labels):
        category.counts[label] += found.counts.get(label, 0)
        if label in config.ignored:
            continue
        level = source.levels and _LEVEL.fullmatch(label)
        defect = names.get(label, f"class-{label}" if level else label)
        if problem := _not_a_folder(defect):
            raise _UndecidedError(
                f"{config.source}: the class {label!r:.80} {problem}; name the defect with "
                f"--classes {label!r:.80}=NAME, or leave the class out with --ignore"
            )
        folded = unicodedata.normalize("NFC", defect).casefold()
        other = category.ids.setdefault(("", folded), defect)
        if other != defect:
            raise _UndecidedError(
                f"{config.source}: the classes {other!r} and {defect!r} differ only in case or "
                f"in the coding of accents; make them one with --classes {defect}={other}"
            )
        defects[label] = defect
    meant = Annotations(said=found.said or bool(labels - defects.keys()), void=found.void)
    for label, mask in found.masks.items():
        if label in defects:
            meant.add(defects[label], mask)
            meant.counts[defects[label]] += found.counts[label] - 1
    for box in found.boxes:
        if box.label not in defects:
            continue
        named = box._replace(label=defects[box.label])
        if config.boxes_as_masks:
            try:
                meant.add(named.label, _filled(named, size))
            except ValueError as error:
                raise UserError(
                    f"{image.image}: a box of {box.label!r} lies outside; mend or remove it"
                ) from error
            category.notes["filled"] += 1
        else:
            meant.boxes.append(named)
    meant.lines = [defects[label] for label in found.lines if label in defects]
    return meant


def _filled(box: Box, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels whose middle lies in a box."""
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    columns = (x >= box.x) & (x < box.x + box.width)
    rows = (y >= box.y) & (y < box.y + box.height)
    return rows[:, None] & columns[None]


def _without_area(
    image: SourceImage, found: Annotations, config: ImportConfig
) -> dict[str, Any]:
    """The record of an image that is left out, since its defects' pixels are not known."""
    if found.lines:
        why = "lines" if config.format == "labelme" and config.line_width is None else "points"
    else:
        why = "some boxes" if found.masks else "boxes"
    boxes = [box._asdict() for box in found.boxes]
    return {"source": image.name, "why": why, "boxes": boxes, "lines": found.lines}


def _unused(config: ImportConfig, categories: Sequence[CategoryOutput]) -> list[str]:
    """Notes on classes that the command names and no image has."""
    seen = {label for category in categories for label in category.counts}
    missing = [name for name in (*config.names, *config.ignored) if name not in seen]
    return [f"no annotation is of the class {name!r}" for name in missing]


def _remove_empty(out: Path | None) -> None:
    """Remove the folder of categories if it was made for nothing."""
    if out is not None and out.is_dir() and not any(out.iterdir()):
        out.rmdir()


def _progress(images: Sequence[SourceImage], label: str) -> Iterable[SourceImage]:
    # disable=None: no bar without a terminal.
    return tqdm(images, desc=label, unit="image", disable=None)
