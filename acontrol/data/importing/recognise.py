"""Annotations of other formats, by their look, and the command that imports them."""

from collections.abc import Iterator
from pathlib import Path

from acontrol.data.listing import entries

_HEAD = 1 << 16  # Bytes of a JSON that are looked at; COCO's may be huge.
_LOOKED_AT = 20  # JSON files of a folder; labelme's may be many.
_VOC = frozenset(("segmentationclass", "segmentationobject", "segmentationclasspng"))


def json_format(path: Path) -> str | None:
    """Whether a JSON file begins as those of "labelme" or "coco" do; None if neither."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if b'"shapes"' in head:
        return "labelme"
    listed = b'"images"' in head and b'"file_name"' in head
    return "coco" if listed or b'"segmentation"' in head else None


def annotations(folder: Path) -> str | None:
    """What annotations a folder holds, with the command to import them; None if none."""
    for name, source, what in _found(folder):
        return f"{what}: acontrol import {name} {source} --out ROOT"
    return None


def _found(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Formats with what to import and what was found."""
    inside = entries(folder)
    names = {path.name.casefold(): path for path in inside}
    if "jpegimages" in names and names.keys() & _VOC:
        yield "voc-masks", folder, f"{folder} is in PASCAL VOC's layout"
    if "image_anno.csv" in names:
        yield "class-masks", folder, f"{names['image_anno.csv']} lists masks, as VisA's"
    outlined: list[Path] = []
    for place in (folder, *(path for path in inside if path.is_dir())):
        files = [path for path in entries(place) if path.suffix.lower() == ".json"]
        for path in files[:_LOOKED_AT]:
            found = json_format(path)
            if found == "coco":
                yield "coco", path, f"{path} holds COCO's annotations"
            elif found == "labelme":
                outlined.append(path)
                break
    if outlined:
        source = outlined[0].parent if len(outlined) == 1 else folder
        yield "labelme", source, f"{outlined[0]} holds labelme's outlines"
    for place in (path for path in inside if path.is_dir()):
        if (place / "image_anno.csv").is_file():
            yield "class-masks", folder, f"{place / 'image_anno.csv'} lists masks, as VisA's"
