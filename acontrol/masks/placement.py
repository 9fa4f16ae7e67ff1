"""Place shapes where their defect can occur."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acontrol.data.crops import bounds
from acontrol.masks.shape import GentleSource, Mask, MaskSource, Shape

TRIES = 64
GENTLE_TRIES = 16  # After these, of shapes that are hardly changed.
_ENOUGH = 8  # Fewest training masks for a prior of their places.
_OVERLAP = 0.95  # Least share of a shape on the product ...
_BOUND = 0.8  # ... unless the training masks' median share is lower: then it goes anywhere.

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rules:
    """Where a defect's masks may be placed.

    Attributes:
        on_product: Whether only on the product, or anywhere in the image.
        overlap: Least share of a shape that is on the product; the rest is cut off.
        places: (n, 2) centres of training masks, row and column, as shares of the product's
            bounding box; empty if all places are equally likely.
        spread: (2,) standard deviation of a new centre around one of them.
    """

    on_product: bool = True
    overlap: float = _OVERLAP
    places: tuple[tuple[float, float], ...] = ()
    spread: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Placed:
    """A mask in its place.

    Attributes:
        mask: (height, width) of the image, not empty, on the product.
        origin: Name of the mask that it was made from, if any.
    """

    mask: Mask
    origin: str | None


@dataclass(frozen=True)
class NotPlaced:
    """No shape could be placed.

    Attributes:
        reason: Why, with a count for each reason.
    """

    reason: str


def learn_rules(pairs: Iterable[tuple[Mask, Mask]]) -> Rules:
    """Learn from training masks where their defect occurs.

    Args:
        pairs: Training masks, not empty, each with the foreground of its image.
    """
    shares, on_products, in_images = [], [], []
    for mask, product in pairs:  # One pair in memory at a time.
        shares.append(float(mask[product].sum() / mask.sum()))
        centre = np.argwhere(mask).mean(axis=0) + 0.5
        in_images.append(centre / mask.shape)
        low, side = _box(product if product.any() else np.ones_like(product))
        on_products.append((centre - low) / side)
    on_product = float(np.median(shares)) >= _BOUND
    overlap = min(_OVERLAP, float(np.quantile(shares, 0.25))) if on_product else _OVERLAP
    if len(shares) < _ENOUGH:
        return Rules(on_product, overlap)
    centres = np.clip(np.array(on_products if on_product else in_images), 0, 1)
    # Silverman's rule for two dimensions.
    spread = centres.std(axis=0) * len(centres) ** (-1 / 6)
    rows = tuple((float(y), float(x)) for y, x in centres)
    return Rules(on_product, overlap, rows, (float(spread[0]), float(spread[1])))


def place(
    source: MaskSource, product: Mask, rules: Rules, *, cells: int | None, seed: int
) -> Placed | NotPlaced:
    """Sample shapes until one fits, up to ``TRIES``; then shapes that are hardly changed.

    Args:
        source: Where shapes come from.
        product: Foreground of the image, (height, width).
        rules: What fits.
        cells: Side of the square grid of attention cells on the image; a mask covers at least
            one's area. None where a square around the defect is drawn, with cells of its own.
        seed: The same seed gives the same mask.
    """
    rng = np.random.default_rng(seed)
    ground = product if rules.on_product else np.ones_like(product)
    if not ground.any():
        return NotPlaced("the image shows no product")
    min_pixels = 1 if cells is None else max(1, int(np.ceil(ground.size / cells**2)))
    failures: Counter[str] = Counter()
    samples = [source.sample] * TRIES
    if isinstance(source, GentleSource):
        samples = [] if source.straight else samples
        samples += [source.sample_gently] * GENTLE_TRIES
    for sample in samples:
        shape = sample((ground.shape[0], ground.shape[1]), min_pixels, rng)
        if isinstance(shape, str):
            failures[shape] += 1
            continue
        top, left = shape.at or _somewhere(shape, ground, rules, rng)
        height, width = shape.pixels.shape
        mask = np.zeros_like(ground)
        mask[top : top + height, left : left + width] = shape.pixels
        mask &= ground
        if mask.sum() < rules.overlap * shape.pixels.sum():
            failures[f"less than {rules.overlap:.0%} of it would lie on the product"] += 1
        elif mask.sum() < min_pixels:
            failures["what lies on the product is under one attention cell"] += 1
        else:
            return Placed(mask, shape.origin)
    reasons = "; ".join(f"{reason} ({count}x)" for reason, count in failures.most_common(3))
    return NotPlaced(f"none of {len(samples)} shapes fits: {reasons}")


def _somewhere(
    shape: Shape, ground: Mask, rules: Rules, rng: np.random.Generator
) -> tuple[int, int]:
    """Row and column for a shape's top left pixel, with the shape inside the image."""
    if rules.places:
        low, side = _box(ground)
        near = np.array(rules.places[int(rng.integers(len(rules.places)))])
        centre = low + side * (near + rng.normal(0, rules.spread))
    else:
        pixels = np.flatnonzero(ground)
        chosen = int(pixels[rng.integers(len(pixels))])
        centre = np.array(divmod(chosen, ground.shape[1]), dtype=np.float64)
    rows, columns = np.nonzero(shape.pixels)
    corner = np.rint(centre - (rows.mean(), columns.mean()))
    room = np.array(ground.shape) - shape.pixels.shape
    # A shape from inside a training image must not touch the edge.
    inner = np.minimum(1, room // 2)
    top, left = np.clip(corner, inner, room - inner).astype(int)
    return int(top), int(left)


def _box(mask: Mask) -> tuple[Points, Points]:
    """Corner and sides of the bounding box, rows before columns."""
    left, top, right, bottom = bounds(mask)
    return np.array([top, left], np.float64), np.array([bottom - top, right - left], np.float64)
