"""The images of one category, for testing and for training."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from acontrol.data import builtin
from acontrol.data.mvtec import LabelledImage, MvtecFolder, open_folder
from acontrol.data.pieces import Labels
from acontrol.data.split import Split
from acontrol.errors import UserError, nearest
from acontrol.evaluation.budget import Drawing
from acontrol.evaluation.folds import labels_of, read_groups
from acontrol.evaluation.images import ImageSet, load
from acontrol.evaluation.leaks import refuse_leaks
from acontrol.evaluation.near_duplicates import other_photographs
from acontrol.evaluation.sources import (
    CutPaste,
    Images,
    MaskMaker,
    Mixed,
    Paired,
    PerlinTexture,
    Source,
)
from acontrol.evaluation.tiles import WholeImages
from acontrol.rivals.perlin import TEXTURES

CONTROLS = ("none", "real", "perlin", "cutpaste")  # Sources that need no generator.
# Images that were inpainted without a defect: labelled by their masks, or as normal.
CLEAN = ("clean-as-defect", "clean-as-normal")
DETECTOR = ("test", "normals")  # What detectors of all sources see.


@dataclass(frozen=True)
class Folders:
    """Where images are, and how they are read.

    Attributes:
        root: Folder of real data.
        synthetic: Folders of generated pairs by name.
        size: Side that images are resized to, in pixels.
        pairs: Most synthetic pairs of a defect.
        left_out: Real images to leave out of the test set.
        split_file: Which real images train; by default the first third.
        fold: Which of these train in a fold of a cross-validation, and which it tests on.
        groups: Which images intervals resample together (`acontrol.evaluation.folds`).
    """

    root: Path
    synthetic: Mapping[str, Path]
    size: int
    pairs: int
    left_out: frozenset[Path] = frozenset()
    split_file: Path | None = None
    fold: Split | None = None
    groups: Path | None = None


class CategoryDataset:
    """The images of one category, read on first use."""

    def __init__(self, folders: Folders, category: str):
        """Open the folders.

        Raises:
            UserError: If the real folder is not a data set, or not that of the split file.
        """
        self.folders, self.category = folders, category
        self.real = open_folder(folders.root, split_file=folders.split_file)
        if folders.fold is not None:
            self.real = dataclasses.replace(self.real, split=folders.fold)
        self._parts: dict[str, ImageSet] = {}

    def part(self, name: str) -> ImageSet:
        """The images of a part.

        Args:
            name: "normals", "defects" (test images), "test" (those and good ones), "real" (the
                training images), or the name of a synthetic folder.

        Raises:
            UserError: If an image is bad, or the part is empty.
        """
        if name not in self._parts:
            self._parts[name] = self._load(name)
        return self._parts[name]

    def images(self, name: str, drawing: Drawing) -> Images:
        """The images of a part as a detector sees them, at one size or whole."""
        if drawing.tile is None:
            return self.part(name)
        return WholeImages(*self._rows(name), drawing.tile, drawing.tile_scale)

    def _load(self, name: str) -> ImageSet:
        return load(*self._rows(name), self.folders.size)

    def _rows(self, name: str) -> tuple[Sequence[Path], Sequence[LabelledImage]]:
        """The normal images of a part, and its images of defects."""
        category = self.category
        if name == "normals":
            normals = self.real.normals(category)
            if not normals:
                raise self._error("has no images in train/good; put good images there")
            return normals, ()
        if name == "real":
            return (), self.real.labelled("train", category)
        if name in ("test", "defects"):
            return self._test_rows(with_good=name == "test")
        folder = open_folder(self.folders.synthetic[name])
        own = category_in(folder, category, len(self.real.folders) == 1)
        if own is None:
            raise UserError(
                f"{folder.root}: has no category {category!r}; "
                f"{nearest(category, folder.categories)}"
            )
        pairs = [
            pair
            for defect in folder.defect_types(own)
            for pair in folder.labelled("all", own, defect)[: self.folders.pairs]
        ]
        if not pairs:
            raise UserError(
                f"{folder.folders[own]}: has no images of defects in test/<defect>; give a "
                "folder written by acontrol generate"
            )
        return (), pairs

    def _test_rows(self, *, with_good: bool) -> tuple[Sequence[Path], Sequence[LabelledImage]]:
        left_out = self.folders.left_out
        labelled = self.real.labelled("test", self.category)
        if not labelled:
            raise self._error("has no images of defects in test/<defect> to test on")
        defects = [row for row in labelled if row.image not in left_out]
        if not defects:
            raise self._error("has no test image of a defect that is a new piece")
        normals = self.real.normals(self.category, "test") if with_good else ()
        good = [path for path in normals if path not in left_out]
        if with_good and not good:
            raise self._error("has no images in test/good; image-level metrics need both")
        return good, defects

    def groups_of(self, files: Sequence[Path]) -> Labels | None:
        """Number of each image's group; None where each is drawn by itself.

        Raises:
            UserError: If the file of groups is bad, or names none of an image.
        """
        if self.folders.groups is None:
            return None
        names = [self.real.name_of(self.category, file) for file in files]
        return labels_of(names, read_groups(self.folders.groups), self.folders.groups)

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self.real.folders.get(self.category, self.real.root)}: {problem}")

    def source(
        self, name: str, masks: MaskMaker, drawing: Drawing | None = None
    ) -> Source | None:
        """The source of the defective half of the training images."""
        drawing = drawing or Drawing()
        parts = [
            self._source(part, masks, drawing)
            for part in name.split("+")
            if part not in ("none", "clean-as-normal")
        ]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else Mixed(parts, drawing.ratio)

    def clean(self, source: str, drawing: Drawing) -> Images | None:
        """Inpainted images that a source has half of the normal images be, if it does."""
        if "clean-as-normal" not in source.split("+"):
            return None
        return self.images("clean-as-normal", drawing)

    def _source(self, name: str, masks: MaskMaker, drawing: Drawing) -> Source:
        if name == "perlin":
            textures = self._textures(drawing.tile or self.folders.size)
            return PerlinTexture(self.images("normals", drawing), masks, textures)
        if name == "cutpaste":
            return CutPaste(self.images("normals", drawing))
        return Paired(self.images(name, drawing))

    def _textures(self, side: int) -> list[Image.Image]:
        """Built-in materials other than the category; DRAEM takes photographs (DTD)."""
        return [
            Image.fromarray(builtin.draw(name, "good", seed=seed, resolution=side).image)
            for name in builtin.CATEGORIES
            if name != self.category
            for seed in range(TEXTURES)
        ]


_cache: dict[str, CategoryDataset] = {}


def cached_dataset(folders: Folders, category: str, data: Mapping[str, str]) -> CategoryDataset:
    """A category's images, kept by this process until category or digests change.

    Decoding takes minutes at full size, and the trainings of a category follow each other.
    """
    key = json.dumps([str(folders), category, sorted(data.items())])
    if key not in _cache:
        _cache.clear()
        _cache[key] = CategoryDataset(folders, category)
    return _cache[key]


def labelled_parts(source: str) -> list[str]:
    """The parts of the data that a source takes defects from."""
    return [part for part in source.split("+") if part not in ("none", "perlin", "cutpaste")]


@dataclass(frozen=True)
class CheckedData:
    """A category's images after `check`.

    Attributes:
        digests: Digest of all images that the trainings of a source see, by source.
        num_test: Number of test images.
        near_duplicates: Test images that look like another photograph of a training piece,
            each with a training image of it.
    """

    digests: dict[str, str]
    num_test: int
    near_duplicates: dict[Path, Path]


def check(
    folders: Folders, category: str, sources: Sequence[str], base: Sequence[str] = DETECTOR
) -> CheckedData:
    """Read all images once, refuse leaks, and find near duplicates.

    ``base`` names the parts that all trainings see, the test images first.

    Raises:
        UserError: If an image or a mask is bad or missing, or a test image is trained on.
    """
    dataset = CategoryDataset(folders, category)
    test, *common = (dataset.part(name) for name in base)
    names = sorted({part for source in sources for part in labelled_parts(source)})
    refuse_leaks(test, [*common, *(dataset.part(name) for name in names)])
    photographs = [*common, *([dataset.part("real")] if "real" in names else [])]
    near_duplicates = {
        file: training_file
        for images in photographs
        for file, training_file in other_photographs(test, images, photographs[0])
    }
    groups = dataset.groups_of(test.files)
    digests = {
        source: _digest([test, *common, *map(dataset.part, labelled_parts(source))], groups)
        for source in sources
    }
    return CheckedData(digests, len(test), near_duplicates)


def category_in(folder: MvtecFolder, category: str, single: bool) -> str | None:
    """A generated folder's category for a real one, or None.

    If the real data has a single category, a folder that is itself a category is taken for it,
    whatever its name.
    """
    if category in folder.folders:
        return category
    itself = [*folder.folders.values()] == [folder.root]
    return folder.categories[0] if itself and single else None


def _digest(parts: Sequence[ImageSet], groups: Labels | None) -> str:
    total = hashlib.sha256(b"" if groups is None else groups.tobytes())
    for part in parts:
        total.update(json.dumps([part.digests, part.defects]).encode())
        total.update(part.masks.numpy().tobytes())
    return total.hexdigest()
