"""MVTec LOCO's layout: several masks for an image, in ground_truth/<defect>/<id>/000.png."""

from collections.abc import Callable, Sequence
from pathlib import Path

from acontrol.data.images import read_mask
from acontrol.data.importing.settings import ImportConfig
from acontrol.data.importing.source import (
    GOOD,
    Annotations,
    Source,
    SourceImage,
    pictures_below,
)
from acontrol.data.listing import MASK_ENDINGS, pictures, subfolders
from acontrol.errors import UserError
from acontrol.messages import counted

Reader = Callable[[str, Sequence[Path]], Callable[[tuple[int, int]], Annotations]]
_PARTS = ("train", "validation", "test")


def read(config: ImportConfig) -> Source:
    """Every image of SOURCE, a category or a folder of some."""
    root = config.source
    folders = [root] if is_layout(root) else [*filter(is_layout, subfolders(root))]
    if not folders:
        raise UserError(
            f"{root}: has no test/ and ground_truth/<defect>/<id>/*.png; give a category of "
            "MVTec LOCO, or a folder of them"
        )
    if config.category is not None and len(folders) > 1:
        raise UserError(
            f"--category {config.category} names one product, and {root} holds {len(folders)}"
        )
    source = Source()
    for folder in folders:
        name = config.category or folder.resolve().name
        source.categories[name] = layout_images(folder, _reader, source.notes)
    return source


def is_layout(folder: Path) -> bool:
    """Whether a folder is a category in MVTec AD's or LOCO's layout, with masks."""
    return (folder / "test").is_dir() and (folder / "ground_truth").is_dir()


def layout_images(category: Path, reader: Reader, notes: list[str]) -> list[SourceImage]:
    """The images of a category in MVTec AD's or LOCO's layout.

    Args:
        category: The folder.
        reader: What reads an image's masks, given its defect folder's name and their paths.
        notes: What is not read is added here.
    """
    rows, used = [], set()
    for part in _PARTS:
        for folder in subfolders(category / part):
            good = folder.name.casefold() in GOOD
            for image in pictures_below(folder):
                name = image.relative_to(folder)
                truth = category / "ground_truth" / folder.name / name.parent
                masks = [] if good else _masks(truth, image.stem)
                used.update(masks)
                rows.append(
                    SourceImage(
                        image,
                        image.relative_to(category).as_posix(),
                        reader(folder.name, masks),
                        files=tuple(masks),
                        good=good,
                        part="test" if part == "test" else "train",
                    )
                )
    others = [path for path in pictures_below(category / "ground_truth") if path not in used]
    if others:
        notes.append(
            f"{counted(len(others), 'mask has', 'masks have')} no image: {others[0]} first"
        )
    return rows


def _masks(truth: Path, stem: str) -> list[Path]:
    """The masks in an image's folder, or the one that has its name."""
    names = {f"{stem}{ending}" for ending in ("", *MASK_ENDINGS)}
    return pictures(truth / stem) or [path for path in pictures(truth) if path.stem in names]


def _reader(defect: str, masks: Sequence[Path]) -> Callable[[tuple[int, int]], Annotations]:
    def read_one(size: tuple[int, int]) -> Annotations:
        found = Annotations()
        for path in masks:
            found.add(defect, read_mask(path, size))
        return found

    return read_one
