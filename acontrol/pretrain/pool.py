"""The images that a base is trained on, in memory, with their captions.

They are drawn by the built-in data set or are random views of the training images of a folder
in MVTec AD's layout. Image ``i`` of a pool depends on the seed and ``i`` alone.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.data import builtin
from acontrol.data.images import fit, read_image, region
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.pieces import balanced, find_pieces, training_images
from acontrol.data.prompts import phrase as plain_phrase
from acontrol.data.prompts import target_text
from acontrol.data.validation import check
from acontrol.errors import UserError
from acontrol.progress import progress
from acontrol.seeding import derive_seed

GOOD = builtin.GOOD
_Source = tuple[Image.Image, Image.Image, "DefectType"]  # With its mask.


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
                images[index], masks[index] = _resized(*crop, images.shape[-1])
        return Pool(images, masks, self.labels, self.vocabulary)

    def without(self, names: Sequence[str]) -> "Pool":
        """The images of defect types that are not held out."""
        seen = torch.tensor([not entry.held_out(names) for entry in self.vocabulary])
        kept = seen[self.labels]
        return Pool(self.images[kept], self.masks[kept], self.labels[kept], self.vocabulary)


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
    folder: MvtecFolder, count: int, test_count: int, seed: int, resolution: int
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

    Raises:
        UserError: If the folder has no training images, a bad one, or none to hold out.
    """
    parts: dict[bool, list[_Source]] = {True: [], False: []}
    for category in folder.categories:
        normals = folder.normals(category)
        labelled = check(training_images(folder, category), skip_bad=False).good
        sources = [_good_source(category, path) for path in normals]
        sources += [_source(row) for row in labelled]
        files = [*normals, *(row.image for row in labelled)]
        kept = _kept(files, [source[2].defect for source in sources], seed)
        for source, stays in zip(sources, kept, strict=True):
            parts[stays].append(source)
    if not parts[True] or not parts[False]:
        raise UserError(
            f"{folder.root}: holds no images to train on and to measure with: put two or more "
            "good ones into train/good, or six of a defect into test/<defect>"
        )
    sources = [*parts[True], *parts[False]]
    vocabulary = tuple(dict.fromkeys(source[2] for source in sources))
    return (
        _views(parts[True], count, seed, resolution, vocabulary),
        _views(parts[False], test_count, derive_seed(seed, "test"), resolution, vocabulary),
    )


def _kept(files: Sequence[Path], defects: Sequence[str], seed: int) -> list[bool]:
    """Which of a category's images, good ones first, are not held out."""
    counts = Counter(defects)
    targets = {name: n - (max(1, n // 10) if n > 1 else 0) for name, n in counts.items()}
    pieces = find_pieces(files, counts[GOOD])
    seed = derive_seed(seed, "held out")
    return balanced(pieces.labels, defects, targets, seed).tolist()


def _source(row: LabelledImage) -> _Source:
    plain = plain_phrase(row.defect)
    plain_caption = target_text(row.category, plain)
    entry = DefectType(row.category, row.defect, row.phrase, plain, row.caption, plain_caption)
    mask = Image.fromarray(row.read_mask())
    return Image.fromarray(read_image(row.image)), mask, entry


def _good_source(category: str, path: Path) -> _Source:
    image = Image.fromarray(read_image(path))
    return image, Image.new("1", image.size), _defect_type(category, GOOD, "", "")


def _views(
    sources: Sequence[_Source],
    count: int,
    seed: int,
    resolution: int,
    vocabulary: tuple[DefectType, ...],
) -> Pool:
    labels = {entry: label for label, entry in enumerate(vocabulary)}
    good = [source for source in sources if source[2].defect == GOOD]
    defective = [source for source in sources if source[2].defect != GOOD]

    def views() -> Iterable[tuple[Tensor, Tensor, int]]:
        for number in itertools.count():
            rng = np.random.default_rng(derive_seed(seed, "pool", number))
            chosen = defective or good
            if defective and good:
                chosen = defective if rng.random() < 0.5 else good
            image, mask, entry = chosen[rng.integers(len(chosen))]
            yield *_view(image, mask, rng, resolution), labels[entry]

    return _collect(views(), count, vocabulary)


def _view(
    image: Image.Image, mask: Image.Image, rng: np.random.Generator, resolution: int
) -> tuple[Tensor, Tensor]:
    """A random crop that keeps the whole defect, flipped half of the time."""
    width, height = image.size
    left, top, right, bottom = mask.getbbox() or (width, height, 0, 0)
    low = rng.random(2) * 0.25 * (width, height)
    x, y = min(int(low[0]), left), min(int(low[1]), top)
    far = rng.uniform(0.75, 1, 2) * (width, height)
    box = (x, y, max(x + 8, int(far[0]), right), max(y + 8, int(far[1]), bottom))
    image, mask = image.crop(box), mask.crop(box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _resized(image, mask, resolution)


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


def _resized(image: Image.Image, mask: Image.Image, size: int) -> tuple[Tensor, Tensor]:
    """(3, size, size) uint8 and (1, size, size) bool."""
    empty = mask.getbbox() is None
    # `fit` keeps a defect of any size, and would invent one in an empty mask.
    pixels, covered = fit(image, Image.new("1", image.size, 1) if empty else mask, size)
    levels = ((pixels + 1) * 127.5).round().to(torch.uint8)
    return levels, torch.zeros_like(covered, dtype=torch.bool) if empty else covered.bool()
