"""Drawn product photographs with labelled defects, as specimens or as a folder.

Pictures are drawn from a seed at any resolution and need no download. Each comes with its
caption, the exact mask of its defect and the same product without the defect.
"""

import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.builtin import rendering
from acontrol.data.listing import numbered

CATEGORIES: tuple[str, ...] = tuple(rendering.PRODUCTS)
DEFECT_TYPES: tuple[str, ...] = tuple(rendering.DEFECTS)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "scratch": ("light", "dark"),
    "hole": ("",),
    "stain": tuple(rendering.PAINTS),
    "crack": ("",),
    "dent": ("",),
    "spots": tuple(rendering.PAINTS),
}
GOOD = "good"

# First seed word of each use, so that no two uses share a stream of random numbers.
_PRODUCT, _DEFECT, _ATTRIBUTE, _STREAM, _DATASET = range(1, 6)
_SPLITS = ("train/good", "test/good", "test/defect")


@dataclass(frozen=True)
class Specimen:
    """One drawn product.

    Attributes:
        image: The picture, (H, W, 3) uint8.
        mask: The defect's pixels, (H, W) bool; empty for a good product.
        normal: The same product without the defect, (H, W, 3) uint8. Equals the image outside
            the mask.
        category: One of `CATEGORIES`.
        defect: One of `DEFECT_TYPES`, or "good".
        attribute: One of `ATTRIBUTES[defect]`; "" if none.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    normal: npt.NDArray[np.uint8]
    category: str
    defect: str
    attribute: str

    @property
    def phrase(self) -> str:
        """The words for the anomaly, such as "a red stain"; "" for a good product."""
        if self.defect == GOOD:
            return ""
        words = f"{self.attribute} {self.defect}".strip()
        # "spots" is a plural and takes no article.
        return words if self.defect == "spots" else f"a {words}"

    @property
    def caption(self) -> str:
        """The caption of the whole picture."""
        product = f"a photo of {self.category}"
        return product if self.defect == GOOD else f"{product} with {self.phrase}"


def draw(
    category: str, defect: str, *, seed: int, resolution: int = 64, attribute: str | None = None
) -> Specimen:
    """Draw one product; the same arguments always give the same bytes.

    Another type of processor may round a few values differently, by one step of 255.

    The product depends only on the category and the seed, and the shape of the defect does not
    depend on its attribute: one seed gives the same scratch, light or dark.

    Args:
        category: One of `CATEGORIES`.
        defect: One of `DEFECT_TYPES`, or "good" for a product without a defect.
        seed: Any integer from 0.
        resolution: Side of the picture in pixels, 32 or more.
        attribute: One of `ATTRIBUTES[defect]`; None chooses one by the seed.

    Raises:
        ValueError: If the category, the defect or the attribute is unknown, or the seed or
            the resolution is out of range.
    """
    _check("category", category, CATEGORIES)
    _check("defect", defect, (*DEFECT_TYPES, GOOD))
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    if resolution < 32:
        raise ValueError(f"resolution must be 32 or more, not {resolution}")
    allowed = ("",) if defect == GOOD else ATTRIBUTES[defect]
    product = CATEGORIES.index(category)
    flaw = len(DEFECT_TYPES) if defect == GOOD else DEFECT_TYPES.index(defect)
    if attribute is None:
        rng = np.random.default_rng([_ATTRIBUTE, product, flaw, seed])
        attribute = allowed[int(rng.integers(len(allowed)))]
    else:
        _check(f"attribute of {defect}", attribute, allowed)
    image, normal, mask = rendering.render(
        category,
        None if defect == GOOD else defect,
        attribute,
        ([_PRODUCT, product, seed], [_DEFECT, product, flaw, seed]),
        resolution,
    )
    return Specimen(image, mask, normal, category, defect, attribute)


def specimens(seed: int, resolution: int = 64) -> Iterator[Specimen]:
    """Draw specimens endlessly; about one in seven is good.

    Args:
        seed: Any integer from 0. Specimen number i depends only on (seed, i).
        resolution: Side of the pictures in pixels.
    """
    defects = (*DEFECT_TYPES, GOOD)
    for number in itertools.count():
        product, flaw, own = np.random.SeedSequence([_STREAM, seed, number]).generate_state(3)
        category, defect = CATEGORIES[product % len(CATEGORIES)], defects[flaw % len(defects)]
        yield draw(category, defect, seed=int(own), resolution=resolution)


def has(category: str, defect: str) -> bool:
    """Whether there are pictures of this product and defect, by their names."""
    return category in CATEGORIES and defect in (*DEFECT_TYPES, GOOD)


def write_dataset(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    resolution: int = 64,
    num_good: int = 20,
    num_good_test: int = 5,
    num_defects: int = 9,
    categories: Sequence[str] = CATEGORIES,
    defects: Sequence[str] = DEFECT_TYPES,
    name_attributes: bool = True,
) -> None:
    """Write a data set in MVTec AD's layout, with captions and phrases.

    Each category also holds `prompt/<defect>/000.txt`, the caption of a defective picture, and
    `prompt/phrases.json`, which maps "<defect>/<id>" to the words for the anomaly. The
    attributes of a defect alternate over its ids. The same arguments write the same bytes, as
    far as `draw` gives them.

    Args:
        root: The folder to write; it must be missing or empty.
        seed: Any integer from 0.
        resolution: Side of the pictures in pixels.
        num_good: Good training pictures of each category.
        num_good_test: Good test pictures of each category.
        num_defects: Defective pictures of each category and defect.
        categories: The `CATEGORIES` to write.
        defects: The `DEFECT_TYPES` to write.
        name_attributes: Whether the words name colour and shade: "a red stain", or "a stain",
            whose colour only the image shows.

    Raises:
        FileExistsError: If the root exists and is not an empty folder.
        ValueError: If a category or a defect is unknown.
    """
    target = Path(root).expanduser().resolve()
    for category in categories:
        _check("category", category, CATEGORIES)
    for defect in defects:
        _check("defect", defect, DEFECT_TYPES)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not an empty folder: name a new folder, or remove it first"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # A sibling is on the same file system, so the rename is atomic.
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        for category in categories:
            folder = partial / category
            _write_good(folder, category, (num_good, num_good_test), seed, resolution)
            _write_defects(
                folder, category, defects, num_defects, seed, resolution, name_attributes
            )
        if target.exists():
            # Not every system can rename onto an empty folder.
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_good(
    folder: Path, category: str, counts: tuple[int, int], seed: int, resolution: int
) -> None:
    for split, count in zip(_SPLITS[:2], counts, strict=True):
        pictures = folder / split
        pictures.mkdir(parents=True)
        for number in range(count):
            own = _own_seed(seed, split, number)
            specimen = draw(category, GOOD, seed=own, resolution=resolution)
            Image.fromarray(specimen.image).save(pictures / f"{numbered(number, count)}.png")


def _write_defects(
    folder: Path,
    category: str,
    defects: Sequence[str],
    count: int,
    seed: int,
    resolution: int,
    name_attributes: bool,
) -> None:
    phrases = {}
    for defect in defects:
        pictures, masks, prompts = (
            folder / part / defect for part in ("test", "ground_truth", "prompt")
        )
        for part in (pictures, masks, prompts):
            part.mkdir(parents=True)
        for number in range(count):
            name = numbered(number, count)
            # The defect is part of the seed, or number 0 of each would share a product.
            own = _own_seed(seed, "test/defect", number, DEFECT_TYPES.index(defect))
            attribute = ATTRIBUTES[defect][number % len(ATTRIBUTES[defect])]
            specimen = draw(
                category, defect, seed=own, resolution=resolution, attribute=attribute
            )
            Image.fromarray(specimen.image).save(pictures / f"{name}.png")
            mask = specimen.mask.astype(np.uint8) * np.uint8(255)
            Image.fromarray(mask).save(masks / f"{name}_mask.png")
            if not name_attributes:
                specimen = replace(specimen, attribute="")
            # Bytes, not text: line ends and encoding must not depend on the system.
            (prompts / f"{name}.txt").write_bytes(f"{specimen.caption}\n".encode("ascii"))
            phrases[f"{defect}/{name}"] = specimen.phrase
    table = json.dumps(phrases, indent=1, sort_keys=True) + "\n"
    (folder / "prompt").mkdir(exist_ok=True)
    (folder / "prompt" / "phrases.json").write_bytes(table.encode("ascii"))


def _own_seed(seed: int, split: str, *numbers: int) -> int:
    """A seed for one picture of the data set."""
    words = [_DATASET, seed, _SPLITS.index(split), *numbers]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _check(noun: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise ValueError(f"unknown {noun} {value!r}: allowed are {names}")
