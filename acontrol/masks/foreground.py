"""Which pixels of a normal image show the product.

An object lies on a plain background that reaches the image's edge; a texture fills the image.
So the edge's colours are the background if they are uniform and the rest differs.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from acontrol.masks.shape import Mask, iou

_SIDE = 128  # Pixels; enough for the estimate.
_RING = 0.03  # Width of the edge, as a share of the side.
_CLEAR = 4.0  # Least contrast between object and edge, in spreads of the edge's colour,
_LEVELS = 16.0  # and in grey levels.
_QUIET = 30.0  # Largest spread of a background, in grey levels.
_EDGE = 0.35  # Largest share of the edge that an object covers.
_SMALLEST = 0.01  # Share of the image: smaller parts and holes are noise.
_FEW = 3  # Fewest normal images for a shared place.
_SAME = 0.85  # IoU of foregrounds in the same place.
_WHOLE = 0.9  # An object that covers a larger share of the image is a texture.


def foreground(image: npt.NDArray[np.uint8]) -> Mask:
    """Estimate the product's pixels.

    Args:
        image: Colours, (height, width, 3) in [0, 255].

    Returns:
        (height, width), True on the product; True everywhere for a texture, and if no plain
        background is found.
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
    product = away > threshold
    if not product.any() or product.all() or product[ring].mean() > _EDGE:
        return everywhere
    contrast = np.median(away[product]) - np.median(away[~product])
    if contrast < max(_LEVELS, _CLEAR * spread):
        return everywhere
    product = _without_specks(product)
    if not product.any() or product.mean() > _WHOLE:
        return everywhere
    return resized(product, (height, width))


def shared_foreground(estimates: Iterable[Mask]) -> Mask | None:
    """Where the product is in every image, if it is always in the same place.

    Args:
        estimates: Foregrounds of normal images of one category, of any sizes.

    Returns:
        (128, 128), or None if the place varies or there are too few images to tell.
    """
    squares = [resized(estimate, (_SIDE, _SIDE)) for estimate in estimates]
    if len(squares) < _FEW:
        return None
    middle = np.asarray(np.mean(squares, axis=0) > 0.5)
    return middle if np.median([iou(square, middle) for square in squares]) >= _SAME else None


def corrected(estimate: Mask, shared: Mask | None) -> Mask:
    """The estimate, or the shared place if the estimate differs much from it.

    A defect or a shadow can spoil the estimate of one image.
    """
    if shared is None:
        return estimate
    place = resized(shared, estimate.shape)
    return estimate if iou(estimate, place) >= _SAME else place


def resized(mask: Mask, size: tuple[int, ...]) -> Mask:
    """A mask at another height and width, by nearest neighbour."""
    nearest = Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), nearest))


def _otsu(values: npt.NDArray[np.float64]) -> float:
    """Otsu's threshold: the least variance within both classes."""
    counts, edges = np.histogram(values, bins=128)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * middles)
    mean_below = total[:-1] / np.maximum(below, 1)
    mean_above = (total[-1] - total[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * (mean_below - mean_above) ** 2)])


def _without_specks(mask: Mask) -> Mask:
    """Drop small parts and fill small holes; a large hole is background seen through."""
    for _ in range(2):  # Parts first, then, inverted, holes.
        labels, count = ndimage.label(mask)
        sizes = ndimage.sum_labels(mask, labels, np.arange(1, count + 1))
        large = 1 + np.flatnonzero(sizes >= _SMALLEST * mask.size)
        mask = ~np.isin(labels, large)
    return mask
