"""The images that a base is trained on, in memory, with their captions.

They are drawn by the built-in data set or are random views of the training images of a folder
in MVTec AD's layout. Image ``i`` of a pool depends on the seed and ``i`` alone.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.data import builtin
from acontrol.data.images import read_image, region
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.pieces import balanced, find_pieces, training_images
from acontrol.data.prompts import phrase as plain_phrase
from acontrol.data.prompts import target_text
from acontrol.data.validation import check
from acontrol.errors import UserError
from acontrol.pretrain.settings import Turns
from acontrol.pretrain.views import Orientations, Photograph, augmented, resized, streaks
from acontrol.progress import progress
from acontrol.seeding import derive_seed

GOOD = builtin.GOOD
_LOOKED_AT = 64  # Good images that say which way a product's streaks run.
_TOO_FEW = 4  # Fewer say nothing.
_STREAKED = math.log(1.5)  # Of `streaks`; ground tiles have 1.4, a ball screw's thread -2.2.
_SLANTED = 0.3  # The same have 0 and .5.
_ALIKE = 0.8  # Of the images: those one way less those the other way.


@dataclass(frozen=True)
class DefectType:
    """A defect of a product in words; the plain ones leave out colour and shade.

    Attributes:
        category: Product.
        defect: Defect type, or "good".
        phrase: Anomaly phrase; "no defect" for a good product.
        plain_phrase: Phrase shared by the whole defect type.
        caption: Caption of the image.
        plain_caption: Caption with the plain phrase.
    """

    category: str
    defect: str
    phrase: str
    plain_phrase: str
    caption: str
    plain_caption: str

    def held_out(self, names: Sequence[str]) -> bool:
        """Whether ``names`` has it, as DEFECT or CATEGORY/DEFECT."""
        return self.defect in names or f"{self.category}/{self.defect}" in names


@dataclass(frozen=True)
class Pool:
    """Images with masks and labels.

    Attributes:
        images: (N, 3, R, R) uint8.
        masks: (N, 1, R, R) bool.
        labels: (N,) indices into ``vocabulary``.
        vocabulary: All defect types.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor
    vocabulary: tuple[DefectType, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def defect_types(self) -> list[DefectType]:
        """The defect type of each image."""
        return [self.vocabulary[label] for label in self.labels.tolist()]

    def pixels(self, indices: Tensor) -> Tensor:
        """Images by index, (n, 3, R, R) in [-1, 1]."""
        return self.images[indices].float() / 127.5 - 1

    def magnified(self, share: float, seed: int) -> "Pool":
        """A copy with a share of the defective images cropped to their defect."""
        images, masks = self.images.clone(), self.masks.clone()
        rng = np.random.default_rng(derive_seed(seed, "magnified"))
        for index in np.flatnonzero(rng.random(len(self)) < share):
            if masks[index].any():
                image = Image.fromarray(images[index].permute(1, 2, 0).numpy())
                crop = region(image, Image.fromarray(masks[index, 0].numpy()))
                images[index], masks[index] = resized(*crop, images.shape[-1])
        return Pool(images, masks, self.labels, self.vocabulary)

    def joined(self, other: "Pool") -> "Pool":
        """The images of both."""
        return Pool(
            torch.cat([self.images, other.images]),
            torch.cat([self.masks, other.masks]),
            torch.cat([self.labels, len(self.vocabulary) + other.labels]),
            (*self.vocabulary, *other.vocabulary),
        )

    def without(self, names: Sequence[str]) -> "Pool":
        """The images of defect types that are not held out."""
        seen = torch.tensor([not entry.held_out(names) for entry in self.vocabulary])
        kept = seen[self.labels]
        return Pool(self.images[kept], self.masks[kept], self.labels[kept], self.vocabulary)


@dataclass(frozen=True)
class _Source:
    """A training image on disk, read when its views are taken; good ones have no row."""

    file: Path
    row: LabelledImage | None
    entry: DefectType

    @classmethod
    def labelled(cls, row: LabelledImage) -> "_Source":
        plain = plain_phrase(row.defect)
        plain_caption = target_text(row.category, plain)
        words = (row.phrase, plain, row.caption, plain_caption)
        return cls(row.image, row, DefectType(row.category, row.defect, *words))

    @classmethod
    def good(cls, category: str, file: Path) -> "_Source":
        return cls(file, None, _defect_type(category, GOOD, "", ""))

    def read(self) -> Photograph:
        image = Image.fromarray(read_image(self.file))
        if self.row is None:
            return Photograph(image, Image.new("1", image.size))
        return Photograph(image, Image.fromarray(self.row.read_mask()))


def built_in_vocabulary() -> tuple[DefectType, ...]:
    """The 84 defect types of the built-in data, good products among them."""
    vocabulary = []
    for category in builtin.CATEGORIES:
        for defect in (*builtin.DEFECT_TYPES, GOOD):
            plain = "spots" if defect == "spots" else f"a {defect}"
            for attribute in builtin.ATTRIBUTES.get(defect, ("",)):
                noun = f"{attribute} {defect}".strip()
                phrase = noun if defect == "spots" else f"a {noun}"
                vocabulary.append(_defect_type(category, defect, phrase, plain))
    return tuple(vocabulary)


def draw_pool(count: int, seed: int, resolution: int) -> Pool:
    """Draw ``count`` images of the built-in data."""
    vocabulary = built_in_vocabulary()
    labels = {(entry.category, entry.phrase): label for label, entry in enumerate(vocabulary)}
    rows = (
        (
            torch.from_numpy(specimen.image).permute(2, 0, 1),
            torch.from_numpy(specimen.mask)[None],
            labels[specimen.category, specimen.phrase or "no defect"],
        )
        for specimen in builtin.specimens(derive_seed(seed, "pool"), resolution)
    )
    return _collect(rows, count, vocabulary)


def folder_pools(
    folder: MvtecFolder,
    count: int,
    test_count: int,
    seed: int,
    resolution: int,
    scale: Sequence[float] | None = None,
    turns: Turns = "auto",
) -> tuple[Pool, Pool]:
    """Random views of a folder's training images, half of them good if it has any.

    Images of the test part are not even read. The second pool is of training images that the
    first has not: about a tenth of each defect, with all photographs of the same piece. It
    is what a base's metrics and its latents' scale are taken on: a scale from test images
    would be a leak, and metrics from them would tempt to choose settings by the test.

    Args:
        folder: The data, with its split.
        count: Views in the first pool.
        test_count: Views in the second.
        seed: Of the views, and of what is held out.
        resolution: Side of the views.
        scale: Views are squares of original pixels at this scale, or between these two; turned,
            mirrored, darker and brighter in the first pool. None: squashed photographs.
        turns: In which orientations: "any" of eight, or "auto", those of `orientations_of`.

    Raises:
        UserError: If the folder has no training images, a bad one, or none to hold out.
    """
    parts: dict[bool, list[_Source]] = {True: [], False: []}
    for category in folder.categories:
        labelled = check(training_images(folder, category), skip_bad=False).good
        sources = [_Source.good(category, file) for file in folder.normals(category)]
        sources += [_Source.labelled(row) for row in labelled]
        for source, stays in zip(sources, _kept(sources, seed), strict=True):
            parts[stays].append(source)
    if not parts[True] or not parts[False]:
        raise UserError(
            f"{folder.root}: holds no images to train on and to measure with: put two or more "
            "good ones into train/good, or six of a defect into test/<defect>"
        )
    sources = [*parts[True], *parts[False]]
    vocabulary = tuple(dict.fromkeys(source.entry for source in sources))
    test_seed = derive_seed(seed, "test")
    return (
        _views(parts[True], count, seed, resolution, vocabulary, scale, turns),
        _views(parts[False], test_count, test_seed, resolution, vocabulary, scale, plain=True),
    )


def good_pool(
    folders: Sequence[MvtecFolder],
    count: int,
    seed: int,
    resolution: int,
    scale: Sequence[float] | None = None,
    turns: Turns = "auto",
) -> Pool:
    """Views, as of `folder_pools`, of the good training images of other products.

    Raises:
        UserError: If a folder has none, or a bad one.
    """
    sources = []
    for folder in folders:
        own = [
            _Source.good(category, file)
            for category in folder.categories
            for file in folder.normals(category)
        ]
        if not own:
            raise UserError(f"--also {folder.root}: has no good training images")
        sources += own
    vocabulary = tuple(dict.fromkeys(source.entry for source in sources))
    seed = derive_seed(seed, "other products")
    return _views(sources, count, seed, resolution, vocabulary, scale, turns)


def _kept(sources: Sequence[_Source], seed: int) -> list[bool]:
    """Which of a category's images, good ones first, are not held out."""
    defects = [source.entry.defect for source in sources]
    counts = Counter(defects)
    targets = {name: n - (max(1, n // 10) if n > 1 else 0) for name, n in counts.items()}
    pieces = find_pieces([source.file for source in sources], counts[GOOD])
    seed = derive_seed(seed, "held out")
    return balanced(pieces.labels, defects, targets, seed).tolist()


def orientations_of(
    sources: Sequence[_Source], seed: int, resolution: int, scale: Sequence[float]
) -> Orientations:
    """Those in which streaks run as in nearly all of a product's good images.

    Args:
        sources: Of one category.
        seed: Of the squares that are looked at.
        resolution: Side of these.
        scale: As of `folder_pools`.
    """
    good = [source for source in sources if source.entry.defect == GOOD]
    if len(good) < _TOO_FEW:
        return Orientations()
    rng = np.random.default_rng(derive_seed(seed, "direction"))
    looked_at = good[:: math.ceil(len(good) / _LOOKED_AT)]
    with progress("direction", len(looked_at), "image", leave=False) as bar:
        found = []
        for source in looked_at:
            found.append(streaks(source.read().square(rng, resolution, scale)[0]))
            bar.update()
    upright, slant = (
        abs(float((np.sign(own) * (np.abs(own) > least)).mean())) >= _ALIKE
        for own, least in zip(np.transpose(found), (_STREAKED, _SLANTED), strict=True)
    )
    return Orientations(quarter_turns=not (upright or slant), mirrors=not slant)


def _views(
    sources: Sequence[_Source],
    count: int,
    seed: int,
    resolution: int,
    vocabulary: tuple[DefectType, ...],
    scale: Sequence[float] | None,
    turns: Turns = "auto",
    *,
    plain: bool = False,
) -> Pool:
    """View ``i`` depends on the seed and ``i``; each source is read once, for all its views."""
    numbers = {entry: label for label, entry in enumerate(vocabulary)}
    good = [source for source in sources if source.entry.defect == GOOD]
    defective = [source for source in sources if source.entry.defect != GOOD]
    views: dict[_Source, list[tuple[int, np.random.Generator]]] = {}
    for number in range(count):
        rng = np.random.default_rng(derive_seed(seed, "pool", number))
        chosen = defective or good
        if defective and good:
            chosen = defective if rng.random() < 0.5 else good
        views.setdefault(chosen[rng.integers(len(chosen))], []).append((number, rng))
    allowed: dict[str, Orientations] = {}
    if scale is not None and not plain and turns == "auto":
        for category in sorted({source.entry.category for source in sources}):
            same = [source for source in sources if source.entry.category == category]
            own_ways = orientations_of(same, seed, resolution, scale)
            allowed[category] = own_ways
            if not own_ways.quarter_turns:
                how = "mirrored but not" if own_ways.mirrors else "neither mirrored nor"
                print(
                    f"{category}: its streaks run one way, so squares are {how} turned by "
                    "right angles (--turns any does both)",
                    flush=True,
                )
    images = torch.zeros((count, 3, resolution, resolution), dtype=torch.uint8)
    masks = torch.zeros((count, 1, resolution, resolution), dtype=torch.bool)
    labels = torch.zeros(count, dtype=torch.long)
    with progress("images", count, "image", leave=False) as bar:
        for source, own in views.items():
            photograph = source.read()
            for number, rng in own:
                if scale is None:
                    view = photograph.whole(rng, resolution)
                else:
                    view = photograph.square(rng, resolution, scale)
                    if not plain:
                        view = augmented(*view, rng, allowed.get(source.entry.category))
                images[number], masks[number] = view
                labels[number] = numbers[source.entry]
                bar.update()
    return Pool(images, masks, labels, vocabulary)


def _collect(
    rows: Iterable[tuple[Tensor, Tensor, int]], count: int, vocabulary: tuple[DefectType, ...]
) -> Pool:
    with progress("images", count, "image", leave=False) as bar:
        kept = []
        for row in itertools.islice(rows, count):
            kept.append(row)
            bar.update()
    images, masks, labels = zip(*kept, strict=True)
    return Pool(torch.stack(images), torch.stack(masks), torch.tensor(labels), vocabulary)


def _defect_type(category: str, defect: str, phrase: str, plain: str) -> DefectType:
    if defect == GOOD:
        caption = f"a photo of {category}"
        return DefectType(category, GOOD, "no defect", "no defect", caption, caption)
    captions = target_text(category, phrase), target_text(category, plain)
    return DefectType(category, defect, phrase, plain, *captions)
