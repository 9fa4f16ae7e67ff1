"""The images that a base is trained on, all in memory, with their words.

Either endless drawings of the built-in data or random views of a folder in MVTec AD's
layout. Number ``i`` of a pool depends on the seed and ``i`` alone.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from acontrol.data import builtin
from acontrol.data.images import fit, read_image, region
from acontrol.data.mvtec import open_folder
from acontrol.data.prompts import phrase, target_text
from acontrol.data.validation import check
from acontrol.errors import UserError
from acontrol.seeding import derive_seed

GOOD = builtin.GOOD


@dataclass(frozen=True)
class DefectType:
    """What an image shows, in words. ``plain`` ones leave out colour and shade.

    Attributes:
        category: The product.
        defect: The defect type, or "good".
        phrase: The anomaly's words; "no defect" for a good product.
        plain_phrase: The same, shared by the whole defect type.
        caption: The sentence for the whole image.
        plain_caption: The same with the plain phrase.
    """

    category: str
    defect: str
    phrase: str
    plain_phrase: str
    caption: str
    plain_caption: str

    def held_out(self, names: Sequence[str]) -> bool:
        """Whether it is among ``names``, each DEFECT or CATEGORY/DEFECT."""
        return self.defect in names or f"{self.category}/{self.defect}" in names


@dataclass(frozen=True)
class Pool:
    """Images with masks and kinds.

    Attributes:
        images: (N, 3, R, R) uint8.
        masks: (N, 1, R, R) bool.
        kinds: (N,) places in ``vocabulary``.
        vocabulary: Every kind there is.
    """

    images: Tensor
    masks: Tensor
    kinds: Tensor
    vocabulary: tuple[DefectType, ...]

    def __len__(self) -> int:
        """How many images."""
        return len(self.kinds)

    def pixels(self, chosen: Tensor) -> Tensor:
        """(n, 3, R, R) in [-1, 1]."""
        return self.images[chosen].float() / 127.5 - 1

    def magnified(self, share: float, seed: int) -> "Pool":
        """A copy in which a share of the defective images shows the region of its defect."""
        images, masks = self.images.clone(), self.masks.clone()
        rng = np.random.default_rng(derive_seed(seed, "magnified"))
        for number in np.flatnonzero(rng.random(len(self)) < share):
            if masks[number].any():
                image = Image.fromarray(images[number].permute(1, 2, 0).numpy())
                view = region(image, _bit_mask(masks[number, 0].numpy()))
                images[number], masks[number] = _levels(*view, images.shape[-1])
        return Pool(images, masks, self.kinds, self.vocabulary)

    def without(self, names: Sequence[str]) -> "Pool":
        """The images whose kind is not held out."""
        seen = torch.tensor([not kind.held_out(names) for kind in self.vocabulary])
        kept = seen[self.kinds]
        return Pool(self.images[kept], self.masks[kept], self.kinds[kept], self.vocabulary)


def built_in_vocabulary() -> tuple[DefectType, ...]:
    """The 84 kinds of the built-in data."""
    kinds = []
    for category in builtin.CATEGORIES:
        for defect in (*builtin.DEFECT_TYPES, GOOD):
            plain = "spots" if defect == "spots" else f"a {defect}"
            for attribute in builtin.ATTRIBUTES.get(defect, ("",)):
                named = f"{attribute} {defect}".strip()
                words = named if defect == "spots" else f"a {named}"
                kinds.append(_kind(category, defect, words, plain))
    return tuple(kinds)


def draw_pool(count: int, seed: int, resolution: int) -> Pool:
    """Draw ``count`` images of the built-in data."""
    vocabulary = built_in_vocabulary()
    places = {(kind.category, kind.phrase): place for place, kind in enumerate(vocabulary)}
    rows = (
        (
            torch.from_numpy(one.image).permute(2, 0, 1),
            torch.from_numpy(one.mask)[None],
            places[one.category, one.phrase or "no defect"],
        )
        for one in builtin.specimens(derive_seed(seed, "pool"), resolution)
    )
    return _collect(rows, count, vocabulary)


def folder_pool(root: Path, count: int, seed: int, resolution: int) -> Pool:
    """Cut ``count`` random views from a folder's images: half good ones, if it has any.

    Raises:
        UserError: If the folder has no image, or a bad one.
    """
    folder = open_folder(root)
    labelled = check(folder.labelled("all"), skip_bad=False).good
    pictures: list[tuple[Image.Image, Image.Image, DefectType]] = []
    for one in labelled:
        pixels = read_image(one.image)
        mask = one.read_mask()
        kind = DefectType(
            one.category,
            one.defect,
            one.phrase,
            phrase(one.defect),
            one.caption,
            target_text(one.category, phrase(one.defect)),
        )
        pictures.append((Image.fromarray(pixels), _bit_mask(mask), kind))
    defective = len(pictures)
    for category in folder.categories:
        for path in folder.normals(category):
            image = Image.fromarray(read_image(path))
            pictures.append((image, Image.new("1", image.size), _kind(category, GOOD, "", "")))
    if not pictures:
        raise UserError(f"{root}: holds no images of good products or of defects")
    vocabulary = tuple(dict.fromkeys(kind for _, _, kind in pictures))
    places = {kind: place for place, kind in enumerate(vocabulary)}

    def views() -> Iterable[tuple[Tensor, Tensor, int]]:
        for number in itertools.count():
            rng = np.random.default_rng(derive_seed(seed, "pool", number))
            low, high = 0, len(pictures)
            if 0 < defective < high:
                low, high = (0, defective) if rng.random() < 0.5 else (defective, high)
            image, mask, kind = pictures[rng.integers(low, high)]
            yield *_view(image, mask, rng, resolution), places[kind]

    return _collect(views(), count, vocabulary)


def _view(
    image: Image.Image, mask: Image.Image, rng: np.random.Generator, resolution: int
) -> tuple[Tensor, Tensor]:
    """A crop of 75 % or more that keeps the whole defect, and perhaps a reflection."""
    width, height = image.size
    left, top, right, bottom = mask.getbbox() or (width, height, 0, 0)
    low = rng.random(2) * 0.25 * (width, height)
    x, y = min(int(low[0]), left), min(int(low[1]), top)
    far = rng.uniform(0.75, 1, 2) * (width, height)
    box = (x, y, max(x + 8, int(far[0]), right), max(y + 8, int(far[1]), bottom))
    image, mask = image.crop(box), mask.crop(box)
    if rng.random() < 0.5:
        image, mask = (one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in (image, mask))
    return _levels(image, mask, resolution)


def _collect(
    rows: Iterable[tuple[Tensor, Tensor, int]], count: int, vocabulary: tuple[DefectType, ...]
) -> Pool:
    shown = tqdm(
        itertools.islice(rows, count), "images", total=count, disable=None, leave=False
    )
    images, masks, kinds = zip(*shown, strict=True)
    return Pool(torch.stack(images), torch.stack(masks), torch.tensor(kinds), vocabulary)


def _kind(category: str, defect: str, words: str, plain: str) -> DefectType:
    if defect == GOOD:
        caption = f"a photo of {category}"
        return DefectType(category, GOOD, "no defect", "no defect", caption, caption)
    return DefectType(
        category,
        defect,
        words,
        plain,
        target_text(category, words),
        target_text(category, plain),
    )


def _levels(image: Image.Image, mask: Image.Image, size: int) -> tuple[Tensor, Tensor]:
    if mask.getbbox() is None:  # `fit` keeps a defect of any size, and would invent one.
        pixels, _ = fit(image, Image.new("1", image.size, 1), size)
        empty = torch.zeros(1, size, size, dtype=torch.bool)
        return ((pixels + 1) * 127.5).round().to(torch.uint8), empty
    pixels, covered = fit(image, mask, size)
    return ((pixels + 1) * 127.5).round().to(torch.uint8), covered.bool()


def _bit_mask(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask)
