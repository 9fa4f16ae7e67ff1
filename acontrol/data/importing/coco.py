"""COCO's JSON of object detection: images, annotations and categories in one file."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from acontrol.data.importing.settings import ImportConfig
from acontrol.data.importing.source import (
    Annotations,
    Box,
    Number,
    Record,
    Source,
    SourceImage,
    category_of,
    first_with,
    is_file,
    parse,
    pictures_below,
    within,
)
from acontrol.data.listing import entries
from acontrol.data.outlines import polygon_mask, run_lengths, runs_mask
from acontrol.errors import UserError
from acontrol.messages import counted

_FORM = "COCO's JSON of images, annotations and categories"
Id = int | str


class CocoImage(Record):
    """An image; old files lack its size."""

    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None


class RunLengths(Record):
    """A mask by columns; as text, it is compressed."""

    size: tuple[int, int]
    counts: list[int] | str


class Annotation(Record):
    """One object: polygons or run lengths, or a box alone."""

    image_id: Id
    category_id: Id
    id: Id | None = None
    segmentation: list[list[Number]] | RunLengths | None = None
    bbox: tuple[Number, Number, Number, Number] | list[Number] | None = None


class Category(Record):
    """A class."""

    id: Id
    name: str


class CocoFile(Record):
    """What is read of a file."""

    images: list[CocoImage]
    annotations: list[Annotation]
    categories: list[Category]


def read(config: ImportConfig) -> Source:
    """Every image that the JSON lists."""
    path = _json(config.source)
    content = parse(CocoFile, path, _FORM)
    if not content.images:
        raise UserError(f"{path}: lists no image; export the annotations again")
    names = {category.id: category.name for category in content.categories}
    drawn: dict[Id, list[Annotation]] = {image.id: [] for image in content.images}
    source = Source()
    counts = Counter(image.id for image in content.images)
    if twice := [identity for identity, count in counts.items() if count > 1]:
        raise UserError(f"{path}: lists two images of id {twice[0]!r:.40}; export it again")
    for number, annotation in enumerate(content.annotations):
        if annotation.image_id not in drawn or annotation.category_id not in names:
            what = "image" if annotation.image_id not in drawn else "category"
            source.bad.append(
                f"{path}: annotation {_id(annotation, number)} is of {what} "
                f"{getattr(annotation, f'{what}_id')!r:.40}, which the file does not list; "
                "export it again"
            )
            continue
        drawn[annotation.image_id].append(annotation)
    root = _images(path, content.images[0].file_name, config.images)
    images: dict[Path, SourceImage] = {}
    for image in content.images:
        try:
            file = within(root, image.file_name, path)
            if file in images:
                raise UserError(f"{path}: lists {image.file_name} twice; export it again")
            if not is_file(file):
                raise UserError(f"{path}: its image {file} is not there; put it there")
        except UserError as error:
            source.bad.append(str(error))
            continue
        read_one = _reader(path, image, drawn[image.id], names)
        name = file.relative_to(root).as_posix()
        images[file] = SourceImage(file, name, read_one, files=(path,))
    others = len({*pictures_below(root)} - images.keys()) if root != Path() else 0
    if others:
        is_ = "is" if others == 1 else "are"
        source.notes.append(f"{counted(others, 'image')} below {root} {is_} not in {path.name}")
    folder = path.parent.parent if path.parent.name.casefold() == "annotations" else path.parent
    rows = sorted(images.values(), key=lambda image: image.name)
    source.categories[category_of(config.category, folder)] = rows
    return source


def _id(annotation: Annotation, number: int) -> str:
    return f"{annotation.id if annotation.id is not None else f'number {number}'!s:.40}"


def _json(source: Path) -> Path:
    """The file itself, or the only one in its folder or in its annotations/."""
    if not source.is_dir():
        return source
    for folder in (source, source / "annotations"):
        files = [path for path in entries(folder) if path.suffix.lower() == ".json"]
        if len(files) == 1:
            return files[0]
        if files:
            raise UserError(
                f"{folder}: holds {len(files)} JSON files ({files[0].name}, {files[1].name}, "
                "...); give the one with the annotations"
            )
    raise UserError(f"{source}: holds no JSON; give the file with the annotations")


def _images(path: Path, name: str, given: Path | None) -> Path:
    """The folder that the images' names start from: that in which the first image is."""
    if given is not None:
        if not given.is_dir():
            raise UserError(f"--images {given}: is not a folder; give that of the images")
        return given
    subset = re.sub(r"^(instances|annotations)_", "", path.stem)
    above = path.parent.parent
    folders = [
        *(path.parent, path.parent / "images", above),
        *(above / "images", above / "images" / subset, above / subset),
    ]
    return first_with(folders, name, path)


def _reader(
    path: Path, image: CocoImage, annotations: Sequence[Annotation], names: dict[Id, str]
) -> Callable[[tuple[int, int]], Annotations]:
    def read_one(size: tuple[int, int]) -> Annotations:
        drawn = (image.width or size[0], image.height or size[1])
        if drawn != size:
            raise UserError(
                f"{path}: lists {image.file_name} with {drawn[0]} x {drawn[1]} pixels, and it "
                f"has {size[0]} x {size[1]}; annotate this image, or put the other back"
            )
        found = Annotations()
        for number, annotation in enumerate(annotations):
            try:
                _add(found, names[annotation.category_id], annotation, size)
            except ValueError as error:
                raise UserError(
                    f"{path}: annotation {_id(annotation, number)} of {image.file_name}: "
                    f"{error}; mend or remove it"
                ) from error
        return found

    return read_one


def _add(found: Annotations, label: str, annotation: Annotation, size: tuple[int, int]) -> None:
    outline = annotation.segmentation
    if isinstance(outline, RunLengths):
        if outline.size != size[::-1]:
            raise ValueError(f"its size is {outline.size}, not (height, width) {size[::-1]}")
        counts = outline.counts
        lengths = run_lengths(counts) if isinstance(counts, str) else counts
        found.add(label, runs_mask(lengths, size))
    elif outline:
        mask = None
        for polygon in outline:
            if len(polygon) % 2:
                raise ValueError("a polygon has an odd number of coordinates")
            points = list(zip(polygon[::2], polygon[1::2], strict=True))
            part = polygon_mask(points, size)
            mask = part if mask is None else mask | part
        assert mask is not None
        found.add(label, mask)
    elif annotation.bbox is not None and len(annotation.bbox) == 4:
        found.boxes.append(Box(label, *annotation.bbox))
    else:
        raise ValueError("has neither an outline nor a box")
