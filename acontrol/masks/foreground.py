"""Which pixels of a normal image show the product.

An object lies on a plain background, which its image's edge shows; a texture fills the
image. So the edge's colours are the background, if they are alike and the rest is not.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from acontrol.masks.shape import Mask

_SIDE = 128  # Pixels; the estimate needs no more.
_RING = 0.03  # Width of the edge that is looked at, as a share of the side.
_CLEAR = 4.0  # The object's colour differs from the edge's by so many times its spread.
_LEVELS = 16.0  # And by so many grey levels.
_QUIET = 30.0  # A background's spread in grey levels is below this.
_EDGE = 0.35  # Share of the edge that an object may reach.
_SMALLEST = 0.01  # Share of the image: smaller parts and holes are noise.
_FEW = 3  # Normal images that say whether the product always lies in the same place.
_SAME = 0.85  # Intersection over union of foregrounds in the same place.
_WHOLE = 0.9  # An object that fills so much of the image is a texture.


def foreground(image: npt.NDArray[np.uint8]) -> Mask:
    """Estimate the product's pixels.

    Args:
        image: Colours, (height, width, 3) in [0, 255].

    Returns:
        (height, width), True on the product; True everywhere for a texture, and wherever
        no plain background is found.
    """
    height, width = image.shape[:2]
    everywhere = np.ones((height, width), dtype=bool)
    ratio = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), np.float64)
    small = ndimage.gaussian_filter(small, (1, 1, 0))
    ring = np.ones(small.shape[:2], dtype=bool)
    edge = max(1, round(_RING * max(size)))
    ring[edge:-edge, edge:-edge] = False
    # Medians, since the object may reach the edge in places.
    background = np.median(small[ring], axis=0)
    away = np.linalg.norm(small - background, axis=2)
    spread = float(np.median(away[ring]))
    threshold = _otsu(away)
    if spread > _QUIET or threshold < max(_LEVELS, _CLEAR * spread) / 2:
        return everywhere
    found = away > threshold
    if not found.any() or not (~found).any() or found[ring].mean() > _EDGE:
        return everywhere
    contrast = np.median(away[found]) - np.median(away[~found])
    if contrast < max(_LEVELS, _CLEAR * spread):
        return everywhere
    found = _without_specks(found)
    if not found.any() or found.mean() > _WHOLE:
        return everywhere
    return resized(found, (height, width))


def shared_foreground(estimates: Sequence[Mask]) -> Mask | None:
    """Where the product lies in every image, if it always lies in the same place.

    Args:
        estimates: Foregrounds of normal images of one category, of any sizes.

    Returns:
        (128, 128), or None where products lie here and there, or images are too few to say.
    """
    if len(estimates) < _FEW:
        return None
    squares = [resized(one, (_SIDE, _SIDE)) for one in estimates]
    middle = np.mean(squares, axis=0) > 0.5
    if np.median([likeness(one, middle) for one in squares]) < _SAME:
        return None
    return np.asarray(middle)


def corrected(estimate: Mask, shared: Mask | None) -> Mask:
    """An estimate, or, where it is unlike the shared place, that place.

    A defect or a shadow can spoil the estimate of one image.
    """
    if shared is None:
        return estimate
    place = resized(shared, estimate.shape)
    return estimate if likeness(estimate, place) >= _SAME else place


def resized(mask: Mask, size: tuple[int, ...]) -> Mask:
    """A mask at another height and width, by its nearest pixels."""
    picture = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(picture)


def likeness(one: Mask, other: Mask) -> float:
    """Intersection over union, in [0, 1]."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def _otsu(values: npt.NDArray[np.float64]) -> float:
    """The threshold that parts the values with the least variance within both classes."""
    counts, edges = np.histogram(values, bins=128)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * middles)
    mean_below = total[:-1] / np.maximum(below, 1)
    mean_above = (total[-1] - total[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * (mean_below - mean_above) ** 2)])


def _without_specks(found: Mask) -> Mask:
    """Drop small parts and fill small holes; a large hole is background seen through."""
    for _ in range(2):  # Parts first, then, turned inside out, holes.
        labels, count = ndimage.label(found)
        sizes = ndimage.sum_labels(found, labels, np.arange(1, count + 1))
        large = 1 + np.flatnonzero(sizes >= _SMALLEST * found.size)
        found = ~np.isin(labels, large)
    return found
