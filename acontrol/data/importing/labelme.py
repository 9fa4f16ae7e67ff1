"""labelme's JSON files, each beside its image."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from acontrol.data.images import opened
from acontrol.data.importing.settings import ImportConfig
from acontrol.data.importing.source import (
    Annotations,
    Box,
    Mask,
    Number,
    Record,
    Source,
    SourceImage,
    category_of,
    is_file,
    parse,
    tree,
    within,
)
from acontrol.data.listing import is_picture
from acontrol.data.outlines import circle_mask, line_mask, polygon_mask
from acontrol.data.pixels import mask_pixels
from acontrol.errors import UserError
from acontrol.messages import counted

_LINES = ("line", "linestrip")
_POINTS = ("point", "points")
_BOXES = ("rectangle", "oriented_rectangle", "rotation")


class Shape(Record):
    """One drawn thing."""

    label: str
    points: list[tuple[Number, Number]]
    shape_type: str | None = "polygon"  # Missing or null in old files.
    mask: str | None = None


class LabelmeFile(Record):
    """What is read of a file."""

    shapes: list[Shape]
    imagePath: str | None = None
    imageHeight: int | None = None
    imageWidth: int | None = None


def read(config: ImportConfig) -> Source:
    """Every image below SOURCE; without a JSON it has no annotation."""
    files = list(tree(config.source))
    images: dict[Path, list[Path]] = {}  # By their path without a suffix.
    for path in files:
        if is_picture(path):
            images.setdefault(path.with_suffix(""), []).append(path)
    source = Source()
    pairs: dict[Path, Path] = {}
    others = []
    for path in files:
        if path.suffix.lower() != ".json":
            continue
        near = images.get(path.with_suffix(""), [])
        try:
            image = near[0] if len(near) == 1 else _named_image(path, config.source)
        except UserError as error:
            # Any JSON may lie about, but not one beside an image or with shapes.
            if near or _is_labelme(path):
                source.bad.append(str(error))
            else:
                others.append(path)
            continue
        if image in pairs:
            source.bad.append(
                f"{path}: {pairs[image].name} annotates {image.name} too; keep one of them"
            )
        else:
            pairs[image] = path
    if others:
        source.notes.append(
            f"{counted(len(others), 'JSON file is', 'JSON files are')} not labelme's: "
            f"{others[0]} first"
        )
    source.categories[category_of(config.category, config.source)] = [
        SourceImage(
            image,
            image.relative_to(config.source).as_posix(),
            _reader(pairs.get(image), config.line_width),
            files=(pairs[image],) if image in pairs else (),
        )
        for image in files
        if is_picture(image)
    ]
    return source


def _is_labelme(path: Path) -> bool:
    try:
        parse(LabelmeFile, path, "")
    except UserError:
        return False
    return True


def _named_image(path: Path, source: Path) -> Path:
    """The image that a file names, where none or several have its own name."""
    content = parse(LabelmeFile, path, "a JSON of labelme")
    name = content.imagePath
    if not name:
        raise UserError(f"{path}: has no image of its name beside it; put it there")
    image = within(source, f"{path.parent.relative_to(source)}/{name}", path)
    if not is_file(image) or not is_picture(image):
        raise UserError(
            f"{path}: its image {name!r} is not there; put it beside (labelme_export_json "
            "writes one that is stored in the JSON)"
        )
    return image


def _reader(
    path: Path | None, line_width: float | None
) -> Callable[[tuple[int, int]], Annotations]:
    def annotations(size: tuple[int, int]) -> Annotations:
        if path is None:
            return Annotations()
        content = parse(LabelmeFile, path, "a JSON of labelme")
        drawn = (content.imageWidth or size[0], content.imageHeight or size[1])
        if drawn != size:
            raise UserError(
                f"{path}: was drawn on {drawn[0]} x {drawn[1]} pixels, and its image has "
                f"{size[0]} x {size[1]}; annotate this image, or put the other back"
            )
        found = Annotations(said=True)
        for number, shape in enumerate(content.shapes):
            try:
                _add(found, shape, size, line_width)
            except ValueError as error:
                raise UserError(
                    f"{path}: shape {number} ({shape.label!r}): {error}; mend or remove it"
                ) from error
        return found

    return annotations


def _add(
    found: Annotations, shape: Shape, size: tuple[int, int], line_width: float | None
) -> None:
    kind, label = shape.shape_type or "polygon", shape.label
    if kind == "polygon":
        found.add(label, polygon_mask(shape.points, size))
    elif kind == "circle":
        if len(shape.points) != 2:
            raise ValueError(f"a circle has two points, not {len(shape.points)}")
        (x, y), (edge_x, edge_y) = shape.points
        found.add(label, circle_mask((x, y), float(np.hypot(edge_x - x, edge_y - y)), size))
    elif kind == "mask":
        found.add(label, _stored_mask(shape, size))
    elif kind in _BOXES:
        if len(shape.points) < 2:
            raise ValueError("a rectangle has two corners or four")
        low, high = np.min(shape.points, axis=0), np.max(shape.points, axis=0)
        found.boxes.append(Box(label, *map(float, low), *map(float, high - low)))
    elif kind in _LINES and line_width is not None:
        found.add(label, line_mask(shape.points, line_width, size))
    elif kind in (*_LINES, *_POINTS):
        found.lines.append(label)
    else:
        raise ValueError(f"its shape_type {kind[:40]!r} is not known")


def _stored_mask(shape: Shape, size: tuple[int, int]) -> Mask:
    """A mask in base64, whose upper left corner is the first point."""
    if not shape.points:
        raise ValueError("a mask has two corners")
    try:
        content = base64.b64decode(shape.mask or "", validate=True)
        with opened(io.BytesIO(content), ("PNG",)) as image:
            pixels = mask_pixels(image)
    except MemoryError:
        raise
    except Exception as error:  # A damaged file can raise anything in Pillow's readers.
        raise ValueError(f"its mask cannot be decoded ({error})") from error
    if not all(-length <= v <= length for v, length in zip(shape.points[0], size, strict=True)):
        raise ValueError("its mask lies outside the image")
    canvas = Image.new("1", size)
    canvas.paste(
        Image.fromarray(pixels), (round(shape.points[0][0]), round(shape.points[0][1]))
    )
    return np.array(canvas)
