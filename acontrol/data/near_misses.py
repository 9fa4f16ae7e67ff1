"""Folders that are nearly in MVTec AD's layout: what they are, and what to call them."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from acontrol.data.importing import recognise
from acontrol.data.index import INDEX_NAME
from acontrol.data.listing import entries, is_picture, pictures, subfolders
from acontrol.messages import counted

PARTS = ("test", "train")
TRUTH = "ground_truth"
_NAMES = {  # Without case and signs.
    TRUTH: r"groundtruths?|gt|masks?|labels?|annotations?|segmentations?",
    "test": r"tests?|testing|testset",
    "train": r"trains?|training|trainset",
}


def of_root(root: Path, is_category: Callable[[Path], bool]) -> str:
    """What a folder without a category may be, as the end of a sentence; "" if unknown."""
    if root.name in PARTS and is_category(root.absolute().parent):
        return f"; that is a category's {root.name}/: give {root.parent}"
    folders = subfolders(root)
    if (root / INDEX_NAME).is_file():
        return "; it holds shards: give the folder of images that they were made from"
    if (root / "run.json").is_file():
        return "; it is a run's output: give the folder of images"
    for folder in (root, *folders):
        if found := recognise.annotations(folder):
            return f"; {found}"
    for folder in (root, *folders):
        for near, right in _misnamed(folder, PARTS):
            return f"; it has {near}, which must be called {right}"
    if above := _above_categories(folders, is_category):
        return f"; {above} holds some: give that"
    for folder in (root, *folders):
        if pictures(folder):
            return f"; it has images straight in {folder}"
    return ""


def _above_categories(
    folders: Sequence[Path], is_category: Callable[[Path], bool], levels: int = 3
) -> Path | None:
    """The first folder that holds a category, of these and of some levels below."""
    for folder in folders:
        if any(is_category(inner) for inner in subfolders(folder)):
            return folder
    below = [inner for folder in folders if levels > 1 for inner in subfolders(folder)]
    return _above_categories(below, is_category, levels - 1) if below else None


def of_shards(root: Path, is_category: Callable[[Path], bool]) -> str | None:
    """The message about a folder of images where shards are expected; None if it is none."""
    if not root.is_dir():
        return None
    own = root.absolute()
    categories_here = any(map(is_category, subfolders(own)))
    for folder in (own, *own.parents[:2]):  # A defect's folder lies two below its category.
        if is_category(folder) or (folder == own and categories_here):
            command = f"acontrol shard {root if folder == own else folder} --out SHARDS"
            return f"{root}: is a folder of images, not of shards; make shards with '{command}'"
    return None


def of_mask(image: Path, mask: Path) -> str:
    """Where a missing mask may be, as the end of a sentence; "" if unknown.

    Args:
        image: <category>/test/<defect>/<id>.<ext>.
        mask: Where its mask is expected.
    """
    truth, category = mask.parent, image.parents[2]
    if pictures(truth / image.stem):
        command = f"acontrol import loco {category} --out ROOT unites them"
        return f" ({truth / image.stem} holds masks, as in MVTec LOCO: {command})"
    for path in entries(truth):
        if re.match(rf"{re.escape(image.stem)}(?!\d)", path.stem, re.I) and is_picture(path):
            return f" ({path} has another name)"
    for folder in subfolders(truth.parent):
        if folder != truth and _bare(folder.name).startswith(_bare(truth.name)):
            coding = unicodedata.normalize("NFC", truth.name)
            if unicodedata.normalize("NFC", folder.name) == coding:
                return f" ({folder} has its accents coded in another way than test's)"
            return f" ({folder} has another name than test/{truth.name})"
    for near, _ in _misnamed(category, [TRUTH]):
        return f" ({near} is not read: call it {TRUTH})"
    beside = image.with_suffix(".json")
    if recognise.json_format(beside) == "labelme":
        command = f"acontrol import labelme {category} --out ROOT"
        return f" ({beside} holds labelme's outlines, which are not read here: {command})"
    for folder in (image.parent, category, category.parent):
        if found := recognise.annotations(folder):
            return f" ({found})"
    for path in (
        image.with_suffix(".json"),
        image.with_suffix(".xml"),
        image.with_suffix(".txt"),
    ):
        if path.is_file():
            return f" ({path} may hold its outline, which is not read: save it as a mask)"
    return ""


def unlabelled(category: Path) -> str | None:
    """A message if a category's images lie where they have no defect or are not known good."""
    for near, right in _misnamed(category, ["test"]):
        return f"{near}: is not read; call it {right}"
    for part, right in (
        ("test", "test/<defect>, good ones in test/good"),
        ("train", "train/good"),
    ):
        folder = category / part
        if straight := pictures(folder):
            return (
                f"{folder}: {counted(len(straight), 'image lies', 'images lie')} straight in "
                f"it (the first: {straight[0].name}), where none is read; move them to {right}"
            )
    return None


def near_categories(root: Path, is_category: Callable[[Path], bool]) -> Iterator[Path]:
    """Folders beside the categories that would be one if they had test/ or train/."""
    for folder in subfolders(root):
        near = any(_misnamed(folder, PARTS))
        near = near or any((folder / name).is_dir() for name in ("good", TRUTH))
        if near and not is_category(folder):
            yield folder


def _misnamed(folder: Path, wanted: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Sub-folders with another name than one that is wanted, and that name."""
    for path in subfolders(folder):
        for right in wanted:
            if path.name != right and re.fullmatch(_NAMES[right], _bare(path.name)):
                yield path, right


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name)).casefold()
