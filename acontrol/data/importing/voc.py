"""PASCAL VOC's layout of masks: JPEGImages, SegmentationClass, Annotations.

The names of the classes are those of CVAT's labelmap.txt (by colour) or labelme's
class_names.txt (by index); without, class-1 and so on.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from acontrol.data.images import read_classes
from acontrol.data.importing.settings import ImportConfig
from acontrol.data.importing.source import (
    Annotations,
    Box,
    Source,
    SourceImage,
    category_of,
    pictures_below,
    subfolder,
)
from acontrol.errors import UserError
from acontrol.messages import counted

IMAGES = ("jpegimages",)
CLASSES = ("segmentationclass", "segmentationclasspng")
OBJECTS = ("segmentationobject", "segmentationobjectpng")
_LISTS = ("labelmap.txt", "class_names.txt")
_VOID = "255"
_BACKGROUND = ("background", "_background_")


def read(config: ImportConfig) -> Source:
    """Every image in JPEGImages."""
    root = config.source
    images = subfolder(root, IMAGES)
    masks, objects = subfolder(root, CLASSES), subfolder(root, OBJECTS)
    if images is None or (masks is None and objects is None):
        need = "JPEGImages and SegmentationClass or SegmentationObject"
        raise UserError(f"{root}: has no {need}; give the folder that holds them")
    listed = next((root / name for name in _LISTS if (root / name).is_file()), None)
    names = None if listed is None else _names(listed)
    boxes = subfolder(root, ("annotations",))
    rows = []
    for image in pictures_below(images):
        name = image.relative_to(images)
        # Of masks by class none other is needed; those by object say nothing of classes.
        mask = _beside(masks or objects, name, (".png", ".bmp", ".tif", ".tiff"))
        xml = _beside(boxes, name, (".xml",))
        rows.append(
            SourceImage(
                image,
                name.as_posix(),
                _reader(mask, xml, names, by_class=masks is not None),
                files=tuple(path for path in (mask, xml, listed) if path is not None),
            )
        )
    source = Source({category_of(config.category, root): rows}, levels=names is None)
    shown = {file for row in rows for file in row.files}
    if others := len({*pictures_below(masks or objects or root)} - shown):
        source.notes.append(f"{counted(others, 'mask has', 'masks have')} no image in {images}")
    if masks is None:
        source.notes.append(
            "SegmentationObject tells objects apart and not classes: all are 'defect'"
        )
    return source


def _beside(folder: Path | None, name: Path, suffixes: Sequence[str]) -> Path | None:
    if folder is None:
        return None
    paths = [folder / name.with_suffix(suffix) for suffix in suffixes]
    return next((path for path in paths if path.is_file()), None)


def _names(path: Path) -> dict[str, str]:
    """Names by colour, as "#ff0000", from labelmap.txt, or by index from class_names.txt."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text; mend or remove it") from error
    if path.name == "class_names.txt":
        names = [line.strip() for line in lines if line.strip()]
        start = -1 if names[:1] == ["__ignore__"] else 0
        return {str(index % 256): name for index, name in enumerate(names, start=start)}
    named: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = bytes(int(level) for level in rest.split(":")[0].split(","))
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: is not a line such as scratch:128,0,0::, got "
                f"{line[:60]!r}; mend it"
            ) from error
        named[f"#{red:02x}{green:02x}{blue:02x}"] = name
    return named


def _reader(
    mask: Path | None, xml: Path | None, names: dict[str, str] | None, *, by_class: bool
) -> Callable[[tuple[int, int]], Annotations]:
    coloured = bool(names) and by_class and all(key.startswith("#") for key in names or {})

    def read_one(size: tuple[int, int]) -> Annotations:
        found = Annotations(said=mask is not None)
        if mask is not None:
            for key, pixels in read_classes(mask, size, colours=coloured).items():
                label = key if names is None else names.get(f"#{key}" if coloured else key)
                if key == _VOID and label in (None, key, "__ignore__"):
                    found.void = True
                    continue
                if not by_class:
                    label = "defect"
                elif names is None:
                    label = key
                if label is None:
                    raise UserError(
                        f"{mask}: holds the class {key}, which labelmap.txt or class_names.txt "
                        "does not name; add it there"
                    )
                if label.casefold() not in _BACKGROUND:
                    found.add(label, pixels)
        if xml is not None and not found.masks:
            found.boxes += _boxes(xml)
        return found

    return read_one


def _boxes(path: Path) -> list[Box]:
    """The boxes of an XML file of VOC."""
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise UserError(f"{path}: declares entities, which are not read; remove them")
        boxes = []
        for item in ElementTree.fromstring(content).iter("object"):
            corners = [
                float(item.findtext(f"bndbox/{name}") or "nan")
                for name in ("xmin", "ymin", "xmax", "ymax")
            ]
            if not all(map(math.isfinite, corners)):
                raise ValueError("an object has no bndbox")
            left, top, right, bottom = corners
            label = (item.findtext("name") or "").strip()
            # Counted from 1, both corners in the box.
            boxes.append(Box(label, left - 1, top - 1, right - left + 1, bottom - top + 1))
        return boxes
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend it") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(
            f"{path}: is no annotation of VOC ({error}); mend or remove it"
        ) from error
