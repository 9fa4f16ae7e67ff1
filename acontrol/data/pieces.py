"""Make a split of a data set, with or without the photographs of a piece kept together.

Two photographs show one piece if their textures correlate over .8 at a size at which
`launch.evaluate` may compare them, or if they are equal pixel by pixel. Pieces are the
connected components of all images of a category, good and defective, in whatever folder.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from acontrol.data.images import pixel_digest, read_image
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.split import Split
from acontrol.data.textures import COMPARED, THRESHOLD, can_tell, textures
from acontrol.seeding import derive_seed

GOOD = "good"
SIDES = (256, 128)  # Of compared images in pixels: the sizes of launch.evaluate's budgets.
_ORDERS = 8
_READ = 64  # Images whose textures are computed at once.
_BLOCK = 1024  # Images whose correlations are computed at once.
_ROUNDING = 1e-5  # Sums differ in the last digits from one matrix product to the next.

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CategorySplit:
    """The split of a category.

    Attributes:
        category: Its name.
        files: All images, the good ones first.
        defects: Defect of each, or "good".
        train: Which of them train.
        pieces: Number of the piece that each shows.
        apart: Whether textures tell its pieces apart; if not, only equal images are one piece.
        nearest: Largest correlation of a training image with a test image; None if not known.
    """

    category: str
    files: tuple[Path, ...]
    defects: tuple[str, ...]
    train: npt.NDArray[np.bool_]
    pieces: Labels
    apart: bool = True
    nearest: float | None = None

    def counts(self) -> dict[str, tuple[int, int]]:
        """Number of training and test images of each defect, and of good ones."""
        counts = Counter(zip(self.defects, self.train.tolist(), strict=True))
        names = sorted({*self.defects}, key=lambda name: (name == GOOD, name))
        return {name: (counts[name, True], counts[name, False]) for name in names}


def split_by_third(folder: MvtecFolder) -> list[CategorySplit]:
    """The first third of each defect trains, and the good images in train/good."""
    splits = []
    for category in folder.categories:
        files, defects, train = _images(folder, category)
        splits.append(CategorySplit(category, files, defects, train, np.arange(len(files))))
    return splits


def split_by_pieces(
    folder: MvtecFolder, seed: int = 0, progress: Progress = lambda items, _: items
) -> list[CategorySplit]:
    """About a third of each defect trains, and no piece is on both sides.

    Good images move between train/good and test/good only with their piece; about as many as
    before train.

    Args:
        folder: The data set.
        seed: Which pieces train follows from it.
        progress: Wraps what takes time, with a label, to show a progress bar.

    Raises:
        UserError: If an image is bad.
    """
    splits = []
    for category in folder.categories:
        files, defects, first = _images(folder, category)
        found = find_pieces(files, defects.count(GOOD), progress, category)
        targets = {name: max(1, n // 3) for name, n in Counter(defects).items()}
        targets[GOOD] = int(first[: defects.count(GOOD)].sum())
        train = balanced(found.labels, defects, targets, derive_seed(seed, "split", category))
        nearest = found.nearest_across(train)
        assert nearest is None or nearest <= THRESHOLD, (
            f"{category}: {nearest} across the sides"
        )
        splits.append(
            CategorySplit(category, files, defects, train, found.labels, found.apart, nearest)
        )
    return splits


def as_split(folder: MvtecFolder, splits: Sequence[CategorySplit]) -> Split:
    """The split file of all categories."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for part in splits:
        for file, trains in zip(part.files, part.train.tolist(), strict=True):
            names[trains].append(folder.name_of(part.category, file))
    return Split(train=tuple(sorted(names[True])), test=tuple(sorted(names[False])))


def training_images(folder: MvtecFolder, category: str) -> list[LabelledImage]:
    """A category's defects in training; unlike `labelled`, a defect may have none."""
    test = {row.key for row in folder.labelled("test", category)}
    return [row for row in folder.labelled("all", category) if row.key not in test]


def _images(
    folder: MvtecFolder, category: str
) -> tuple[tuple[Path, ...], tuple[str, ...], npt.NDArray[np.bool_]]:
    """A category's images, the defect of each, and which of them train by the third."""
    rows = [(file, GOOD, True) for file in folder.normals(category)]
    rows += [(file, GOOD, False) for file in folder.normals(category, "test")]
    training = {row.key for row in training_images(folder, category)}
    rows += [
        (row.image, row.defect, row.key in training) for row in folder.labelled("all", category)
    ]
    files, defects, train = zip(*rows, strict=True) if rows else ((), (), ())
    return files, defects, np.array(train, dtype=bool)


@dataclass(frozen=True)
class Pieces:
    """What `find_pieces` found.

    Attributes:
        labels: Number of the piece that each image shows, from 0.
        textures: Textures of all images by side; empty if they do not tell pieces apart.
    """

    labels: Labels
    textures: tuple[Float[Tensor, "n pixels"], ...]

    @property
    def apart(self) -> bool:
        """Whether textures tell pieces apart."""
        return bool(self.textures)

    def nearest_across(self, train: npt.NDArray[np.bool_]) -> float | None:
        """Largest correlation of a training image with another; None if there is none."""
        if not self.apart or train.all() or not train.any():
            return None
        sides = torch.from_numpy(train)
        return max(
            float((block @ own[~sides].T).max())
            for own in self.textures
            for block in own[sides].split(_BLOCK)
        )


def find_pieces(
    files: Sequence[Path],
    num_good: int,
    progress: Progress = lambda items, _: items,
    label: str = "",
) -> Pieces:
    """Tell which images show the same piece.

    Args:
        files: Images of one category.
        num_good: How many of them, from the first on, are good; they tell whether textures of
            different pieces differ at all. Fewer than two: all images do.
        progress: Wraps what takes time, with a label.
        label: Of the images.

    Raises:
        UserError: If an image is bad.
    """
    by_side: dict[int, list[Tensor]] = {side: [] for side in SIDES}
    equal: dict[str, int] = {}
    pairs: list[npt.NDArray[np.int64]] = []
    numbered = enumerate(progress(files, f"{label}: reading"))
    while batch := [(n, read_image(file)) for n, file in itertools.islice(numbered, _READ)]:
        for number, pixels in batch:
            same = equal.setdefault(pixel_digest(pixels), number)
            pairs.append(np.array([[number, same]]))
        for side, own in by_side.items():
            own.append(textures(torch.stack([_resized(pixels, side) for _, pixels in batch])))
    stacked = tuple(torch.cat(own) for own in by_side.values()) if files else ()
    first = num_good if num_good > 1 else len(files)
    if not all(can_tell(own[:first][:COMPARED]) for own in stacked):
        stacked = ()
    blocks = [(own, start) for own in stacked for start in range(0, len(files), _BLOCK)]
    for own, start in progress(blocks, f"{label}: comparing"):
        near = own[start : start + _BLOCK] @ own[start:].T > THRESHOLD - _ROUNDING
        pairs.append(torch.nonzero(near).numpy() + start)
    rows, columns = np.concatenate([np.zeros((0, 2), np.int64), *pairs]).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(files),) * 2)
    return Pieces(connected_components(graph, directed=False)[1].astype(np.int64), stacked)


def balanced(
    pieces: Labels, defects: Sequence[str], targets: Mapping[str, int], seed: int
) -> npt.NDArray[np.bool_]:
    """Choose the pieces that train, so that each defect's share comes near to its target.

    Pieces are taken in random order where each brings the counts nearer to the targets, and
    then moved one by one while that helps; the best of some orders counts.

    Args:
        pieces: Number of each image's piece.
        defects: Defect of each image, or "good".
        targets: Number of images of each that are to train.
        seed: Of the order.

    Returns:
        Which images train.
    """
    names = sorted({*defects})
    kinds = np.array([names.index(defect) for defect in defects], np.int64)
    counts = np.zeros((pieces.max(initial=-1) + 1, len(names)))
    np.add.at(counts, (pieces, kinds), 1)
    total = counts.sum(axis=0)
    target = np.array([targets[name] for name in names], float)
    scale = np.maximum(1, np.minimum(target, total - target))

    def cost(trained: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """By number of training images of each defect, in the last axis."""
        # Without any image on a side a defect cannot be drawn, or not be tested.
        lost = 1e6 * ((trained == 0) & (target > 0)) + 1e3 * (
            (trained == total) & (target < total)
        )
        return (((trained - target) / scale) ** 2 + lost).sum(axis=-1)

    def choose(order: npt.NDArray[np.int64]) -> tuple[float, npt.NDArray[np.bool_]]:
        chosen = np.zeros(len(counts), bool)
        trained = np.zeros(len(names))
        for piece in order:
            if cost(trained + counts[piece]) < cost(trained):
                chosen[piece] = True
                trained = trained + counts[piece]
        while len(counts):
            moved = trained + np.where(chosen, -1, 1)[:, None] * counts
            best = int(cost(moved).argmin())
            if cost(moved[best]) >= cost(trained) - 1e-9:
                break
            chosen[best], trained = not chosen[best], moved[best]
        return float(cost(trained)), chosen

    rng = np.random.default_rng(seed)
    tries = [choose(rng.permutation(len(counts))) for _ in range(_ORDERS)]
    return min(tries, key=lambda result: result[0])[1][pieces]


def _resized(pixels: npt.NDArray[np.uint8], side: int) -> Tensor:
    """As `launch.evaluate` sees an image, (3, side, side)."""
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
