"""The images of one category: those that a network is tested on, and what it may train on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from acontrol.data import builtin
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.errors import UserError
from acontrol.evaluation.images import ImageSet, load, refuse_leaks
from acontrol.evaluation.near_duplicates import other_photographs
from acontrol.evaluation.sources import (
    CutPaste,
    MaskMaker,
    Mixed,
    Paired,
    PerlinTexture,
    Source,
)

CONTROLS = ("none", "real", "perlin", "cutpaste")  # Sources that need no generator.
DETECTOR = ("test", "normals")  # What a detector sees whatever its source.
_TEXTURES = 12  # Of each drawn material, for Perlin's blobs.


@dataclass(frozen=True)
class Folders:
    """Where images are, and how they are read.

    Attributes:
        root: The real data.
        synthetic: Folders of generated pairs, by name.
        size: Side that images are brought to, in pixels.
        pairs: Synthetic pairs taken of each defect, at most.
        left_out: Real images that are not tested on.
    """

    root: Path
    synthetic: Mapping[str, Path]
    size: int
    pairs: int
    left_out: frozenset[Path] = frozenset()


class CategoryDataset:
    """The images of one category, read when they are first needed."""

    def __init__(self, folders: Folders, category: str):
        """Open the folders.

        Raises:
            UserError: If one is no data set, or lacks the category.
        """
        self.folders, self.category = folders, category
        self.real = open_folder(folders.root)
        self._parts: dict[str, ImageSet] = {}

    def part(self, name: str) -> ImageSet:
        """The pictures of a part.

        Args:
            name: "normals", "test" (good ones and "defects"), "defects", "real" (the training
                third), or a synthetic folder's.

        Raises:
            UserError: If an image is bad, or there is none.
        """
        if name not in self._parts:
            self._parts[name] = self._load(name)
        return self._parts[name]

    def _load(self, name: str) -> ImageSet:
        size, category = self.folders.size, self.category
        where = self.real.folders.get(category, self.real.root)
        if name == "normals":
            normals = self.real.normals(category)
            if not normals:
                raise UserError(f"{where}: has no images in train/good; put good images there")
            return load(normals, (), size)
        if name == "real":
            return load((), self.real.labelled("train", category), size)
        if name in ("test", "defects"):
            left_out = self.folders.left_out
            found = self.real.labelled("test", category)
            defects = [one for one in found if one.image not in left_out]
            if found and not defects:
                raise UserError(f"{where}: has no test image of a defect that is a new piece")
            good = self.real.normals(category, "test") if name == "test" else ()
            good = tuple(one for one in good if one not in left_out)
            if not defects:
                raise UserError(
                    f"{where}: has no images of defects in test/<defect>; they are what a "
                    "network is tested on"
                )
            if name == "test" and not good:
                raise UserError(
                    f"{where}: has no images in test/good; image-level metrics need both"
                )
            return load(good, defects, size)
        folder = open_folder(self.folders.synthetic[name])
        own = category_in(folder, category, len(self.real.folders) == 1)
        if own is None:
            raise UserError(
                f"{folder.root}: has no category {category!r}; it has "
                f"{', '.join(folder.categories)}"
            )
        kinds = folder.defect_types(own)
        pairs = [
            one
            for kind in kinds
            for one in folder.labelled("all", own, kind)[: self.folders.pairs]
        ]
        if not pairs:
            raise UserError(
                f"{folder.folders[own]}: has no images of defects in test/<defect>; give a "
                "folder as launch.generate writes it"
            )
        return load((), pairs, size)

    def source(self, name: str, masks: MaskMaker) -> Source | None:
        """What makes the defective half of the training images."""
        if name == "none":
            return None
        parts = [self._source(part, masks) for part in name.split("+")]
        return parts[0] if len(parts) == 1 else Mixed(parts)

    def _source(self, name: str, masks: MaskMaker) -> Source:
        if name == "perlin":
            return PerlinTexture(self.part("normals"), masks, self._textures())
        if name == "cutpaste":
            return CutPaste(self.part("normals"))
        return Paired(self.part(name))

    def _textures(self) -> list[Image.Image]:
        """Drawn materials, none of the product's name: DRAEM's are photographs (DTD)."""
        return [
            Image.fromarray(
                builtin.draw(name, "good", seed=seed, resolution=self.folders.size).image
            )
            for name in builtin.CATEGORIES
            if name != self.category
            for seed in range(_TEXTURES)
        ]


_kept: dict[str, CategoryDataset] = {}


def kept_dataset(folders: Folders, category: str, data: Mapping[str, str]) -> CategoryDataset:
    """A category's images, which this process keeps until it is asked for another's.

    Decoding takes minutes at full size, and the trainings of a category follow each other.

    Args:
        folders: Where images are.
        category: Which.
        data: Digests of `check`: if these change, images are read again.
    """
    key = json.dumps([str(folders), category, sorted(data.items())])
    if key not in _kept:
        _kept.clear()
        _kept[key] = CategoryDataset(folders, category)
    return _kept[key]


def pictures_of(source: str) -> list[str]:
    """The parts of the data that a source trains on, besides normal images."""
    return [part for part in source.split("+") if part not in ("none", "perlin", "cutpaste")]


@dataclass(frozen=True)
class Checked:
    """What `check` finds.

    Attributes:
        data: For each source a digest of all the images that its trainings see.
        tested: How many images are tested on.
        alike: Those that look like another photograph of a piece that is trained on, each
            with an image of it.
    """

    data: dict[str, str]
    tested: int
    alike: dict[Path, Path]


def check(
    folders: Folders, category: str, sources: Sequence[str], base: Sequence[str] = DETECTOR
) -> Checked:
    """Read everything once, and refuse what leaks.

    Args:
        folders: Where images are.
        category: Which.
        sources: What is trained on.
        base: Parts that all trainings see, of which the first is what they are tested on.

    Raises:
        UserError: If an image or a mask is bad or missing, or a test image is trained on.
    """
    dataset = CategoryDataset(folders, category)
    test, *common = (dataset.part(name) for name in base)
    names = sorted({part for source in sources for part in pictures_of(source)})
    refuse_leaks(test, [*common, *(dataset.part(name) for name in names)])
    photographs = [*common, *(dataset.part("real") for name in names if name == "real")]
    alike = {
        found: known
        for one in photographs
        for found, known in other_photographs(test, one, photographs[0])
    }
    data = {
        source: _digest([test, *common, *(dataset.part(one) for one in pictures_of(source))])
        for source in sources
    }
    return Checked(data, len(test), alike)


def category_in(folder: MvtecFolder, category: str, alone: bool) -> str | None:
    """A generated folder's category for a real one, or None.

    Args:
        folder: The generated folder.
        category: The real one's name.
        alone: Whether it is the only one. Then a folder that is itself a category stands for
            it, whatever its name.
    """
    if category in folder.folders:
        return category
    itself = [*folder.folders.values()] == [folder.root]
    return folder.categories[0] if itself and alone else None


def _digest(parts: Sequence[ImageSet]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(json.dumps([part.digests, part.defects]).encode())
        whole.update(part.masks.numpy().tobytes())
    return whole.hexdigest()
