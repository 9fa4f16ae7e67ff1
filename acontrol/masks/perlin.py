"""Masks from Perlin noise: a control that knows nothing of the defect.

As in DRAEM (Zavrtanik et al., 2021): noise of a random period for each axis, rotated and
thresholded.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from acontrol.masks.shape import Mask, Shape, cut_out

_LARGEST_POWER = 6  # Periods are the side over 1, 2, 4, ... 32.
_THRESHOLD = 0.5


class PerlinMasks:
    """Blobs all over the image."""

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Generate the blobs of one image (`acontrol.masks.shape.MaskSource`)."""
        mask = perlin_blobs(size, rng)
        if mask.sum() < max(1, min_pixels):
            return "the noise has no blob of one attention cell"
        return cut_out(mask)


def perlin_blobs(size: tuple[int, int], rng: np.random.Generator) -> Mask:
    """Blobs on an image of this height and width, (height, width); may be empty."""
    periods = 2 ** rng.integers(0, _LARGEST_POWER, 2)
    noise = perlin_noise(size, (int(periods[0]), int(periods[1])), rng)
    angle = rng.uniform(-90, 90)
    noise = ndimage.rotate(noise, angle, reshape=False, order=1, mode="reflect")
    return np.asarray(noise > _THRESHOLD)


def perlin_noise(
    size: tuple[int, int], periods: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Gradient noise (Perlin, 1985) with the fade 6t^5 - 15t^4 + 10t^3.

    Args:
        size: Height and width.
        periods: Lattice cells from top to bottom, and from left to right.
        rng: Draws the lattice's directions.

    Returns:
        (height, width), about within [-1, 1].
    """
    angles = rng.uniform(0, 2 * np.pi, (periods[0] + 1, periods[1] + 1))
    y, x = (
        (np.arange(length) + 0.5) / length * count
        for length, count in zip(size, periods, strict=True)
    )
    row, column = y.astype(int), x.astype(int)
    v, u = (y - row)[:, None], (x - column)[None]

    def corner(down: int, right: int) -> npt.NDArray[np.float64]:
        angle = angles[np.ix_(row + down, column + right)]
        return np.asarray(np.sin(angle) * (v - down) + np.cos(angle) * (u - right))

    def fade(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return t * t * t * (t * (t * 6 - 15) + 10)

    top = corner(0, 0) * (1 - fade(u)) + corner(0, 1) * fade(u)
    bottom = corner(1, 0) * (1 - fade(u)) + corner(1, 1) * fade(u)
    # A lattice of unit vectors reaches sqrt(1/2).
    return np.asarray((top * (1 - fade(v)) + bottom * fade(v)) * np.sqrt(2))
