"""A mask at the image's edge, stretched to another frame and bent, without the whole frame.

The signed distance of a photograph's frame, its grid and its bend take a hundred bytes a pixel,
and the mask is in a corner of it. Only its surroundings are computed: as far out as needed to
be sure that no pixel beyond them is among the largest.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from acontrol.data.crops import bounds
from acontrol.masks.shape import Mask

_REACH = 16.0  # Pixels of the mask's frame; doubled until it is enough.
_STRIP = 2**20  # Pixels.

Field = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bend:
    """A smooth random displacement of a frame, computed where it is asked for.

    Attributes:
        coarse: (2, 4, 4), of rows and columns.
        down: (height, 4), cubic weights.
        across: (width, 4).
    """

    coarse: Field
    down: Field
    across: Field

    @classmethod
    def of(cls, size: tuple[int, int], pixels: float, rng: np.random.Generator) -> Self:
        """Displace by ``pixels`` on average."""
        coarse = rng.normal(0, pixels, (2, 4, 4))
        # A spline is linear in its values, and each axis is on its own.
        weights = (
            ndimage.zoom(np.eye(4), (side / 4, 1), order=3, grid_mode=True, mode="nearest")
            for side in size
        )
        return cls(coarse, *weights)

    @property
    def most(self) -> float:
        """No displacement is larger."""
        sums = (np.abs(weights).sum(axis=1).max() for weights in (self.down, self.across))
        return float(np.abs(self.coarse).max() * np.prod(list(sums)))

    def at(self, rows: slice, columns: slice) -> Field:
        """(2, rows, columns)."""
        return np.asarray(self.down[rows] @ self.coarse @ self.across[columns].T)


def stretched(
    mask: Mask,
    size: tuple[int, int],
    count: int,
    bend: Bend,
    flips: tuple[bool, bool],
) -> tuple[Mask, tuple[int, int]]:
    """Stretch a mask's frame to an image, flip and bend it.

    Args:
        mask: (height, width), not empty.
        size: Height and width of the image.
        count: Pixels of the result, at most the image's.
        bend: Of the image's size.
        flips: Whether it is turned upside down, and left to right.

    Returns:
        A part of the image that holds all of the result, and its top left pixel's place.
    """
    left, top, right, bottom = bounds(mask)
    zoom = [(old - 1) / max(1, new - 1) for old, new in zip(mask.shape, size, strict=True)]
    reach, most = _REACH, bend.most
    while True:
        crops, windows = [], []
        for low, high, old, new, scale, flip in zip(
            (top, left), (bottom, right), mask.shape, size, zoom, flips, strict=True
        ):
            margin = int(reach + 2 * most * scale) + 3
            crops.append(slice(max(0, low - margin), min(old, high + margin)))
            first, last = (old - high, old - 1 - low) if flip else (low, high - 1)
            windows.append(_window((first - reach, last + reach), scale, most, new))
        rows, columns = windows
        whole = (rows.stop - rows.start, columns.stop - columns.start) == size
        values = _values(mask, crops, windows, zoom, bend, flips)
        if count <= values.size:
            chosen, least = largest(values, count)
            # Beyond the window every value is lower than that.
            if whole or least > 1 - reach:
                return chosen, (rows.start, columns.start)
        reach *= 2


def signed_distance(mask: Mask) -> Field:
    """Distance to the mask's border, positive inside: resizing it keeps thin lines."""
    if mask.all():
        return np.ones(mask.shape)
    inside = ndimage.distance_transform_edt(mask)
    return np.asarray(inside - ndimage.distance_transform_edt(~mask), dtype=np.float64)


def largest(field: Field, count: int) -> tuple[Mask, float]:
    """Exactly ``count`` pixels, those with the largest values, and the least of these."""
    values = field.ravel()
    least = np.partition(values, values.size - count)[values.size - count]
    mask = values > least
    # Of those that are equal, the first ones.
    mask[np.flatnonzero(values == least)[: count - int(mask.sum())]] = True
    return mask.reshape(field.shape), float(least)


def _window(span: tuple[float, float], scale: float, most: float, new: int) -> slice:
    """The image's pixels that may come from a span of the mask's frame, however bent."""
    if not scale:
        return slice(0, new)
    start, stop = span[0] / scale - most, span[1] / scale + most
    return slice(max(0, int(np.floor(start))), min(new, int(np.ceil(stop)) + 1))


def _values(
    mask: Mask,
    crops: list[slice],
    windows: list[slice],
    zoom: list[float],
    bend: Bend,
    flips: tuple[bool, bool],
) -> Field:
    """The signed distance in a window of the image, from a crop of the mask's frame."""
    field = signed_distance(mask[crops[0], crops[1]])
    rows, columns = windows
    values = np.empty((rows.stop - rows.start, columns.stop - columns.start))
    step = max(1, _STRIP // values.shape[1])
    for first in range(rows.start, rows.stop, step):
        strip = slice(first, min(rows.stop, first + step))
        places = bend.at(strip, columns)
        places[0] += np.arange(strip.start, strip.stop)[:, None]
        places[1] += np.arange(columns.start, columns.stop)
        for axis, (scale, crop) in enumerate(zip(zoom, crops, strict=True)):
            places[axis] *= scale
            if flips[axis]:
                places[axis] = mask.shape[axis] - 1 - places[axis]
            places[axis] -= crop.start
        values[strip.start - rows.start : strip.stop - rows.start] = ndimage.map_coordinates(
            field, places, order=1, mode="nearest"
        )
    return values
