"""Painting tools: the grid, noise, colours and light."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Shares = npt.NDArray[np.floating]
Rgb = tuple[int, int, int]
Window = tuple[slice, slice]

# Unit vector towards the light.
LIGHT_X, LIGHT_Y = -0.6, -0.8


@dataclass(frozen=True)
class Surface:
    """A product without a defect, at the painting size.

    Attributes:
        rgb: Colours in 0..1, shape (n, n, 3).
        core: The colour of the material below the surface, seen in the wall of a hole.
        disc: Centre x, centre y and radius of the object; None if the product fills the
            picture.
        grain: Direction of the texture in radians, which a scratch must cross to be visible;
            None if it has no direction.
        fray: How ragged a hole in this material gets, 0..1.
    """

    rgb: FloatArray
    core: Rgb
    disc: tuple[float, float, float] | None = None
    grain: float | None = None
    fray: float = 0.0


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[FloatArray, FloatArray]:
    """Pixel centres as a row (1, n) and a column (n, 1), to broadcast."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return line[None, :], line[:, None]


@lru_cache(maxsize=128)
def _spline(size: int, cells: int) -> FloatArray:
    """Cubic B-spline weights (size, cells + 3) from lattice values to pixels."""
    at = (np.arange(size) + 0.5) / size * cells
    cell = at.astype(np.int64)
    f = at - cell
    basis = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    weights = np.zeros((size, cells + 3), np.float32)
    for offset, values in enumerate(basis):
        weights[np.arange(size), cell + offset] = values / 6
    return weights


def noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> FloatArray:
    """Smooth noise of about unit variance with this number of cells on each axis.

    The lattice does not depend on the size, so all resolutions show the same noise.
    """
    lattice = rng.standard_normal((rows + 3, columns + 3), dtype=np.float32)
    # A cubic B-spline shrinks the deviation to about 0.48 of the lattice's.
    field: FloatArray = _spline(size, rows) @ lattice @ (_spline(size, columns).T * 2.1)
    return field


def step(low: float, high: float, value: FloatArray) -> FloatArray:
    """Smooth step from 0 at low to 1 at high; falling if low is above high."""
    t = np.clip((value - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    smooth: FloatArray = t * t * (3 - 2 * t)
    return smooth


def colour(rgb: Rgb) -> FloatArray:
    """A colour in 0..1."""
    return np.asarray(rgb, np.float32) / np.float32(255)


def pick(rng: np.random.Generator, choices: tuple[tuple[Rgb, Rgb], ...]) -> list[FloatArray]:
    """One pair of colours, both shifted a little so that no two products are the same."""
    shift = rng.normal(0, 0.008, 3) + rng.normal(0, 0.02)
    pair = choices[int(rng.integers(len(choices)))]
    return [colour(rgb) + shift.astype(np.float32) for rgb in pair]


def mix(first: FloatArray, second: FloatArray, share: Shares) -> FloatArray:
    """Blend two colours or pictures by a (n, n) share of the second."""
    return first + share[..., None].astype(np.float32, copy=False) * (second - first)


def shade(rgb: FloatArray, factor: Shares) -> FloatArray:
    """A colour or a picture, brighter or darker by a (n, n) factor."""
    return rgb * factor[..., None].astype(np.float32, copy=False)


def lighting(rng: np.random.Generator, size: int, strength: float) -> FloatArray:
    """The slow fall-off of a lamp at the upper left."""
    x, y = grid(size)
    tilt = rng.uniform(-0.4, 0.4)
    slope = (x - 0.5) * (LIGHT_X + tilt) + (y - 0.5) * (LIGHT_Y - tilt)
    return 1 + np.float32(strength) * slope


def relief(height: FloatArray) -> FloatArray:
    """How much brighter the light makes a height field, in units of its slope."""
    size = height.shape[0]
    down = np.diff(height, axis=0, append=height[-1:])
    right = np.diff(height, axis=1, append=height[:, -1:])
    slope: FloatArray = -(right * np.float32(LIGHT_X) + down * np.float32(LIGHT_Y)) * size
    return slope


def window(size: int, x: float, y: float, reach: float) -> Window:
    """The part of the picture within reach of a point, in which small things are drawn."""
    low_y, low_x = max(0, int((y - reach) * size)), max(0, int((x - reach) * size))
    high_y, high_x = int((y + reach) * size) + 2, int((x + reach) * size) + 2
    # A negative end, for a point off the picture, would count from the back.
    return slice(low_y, max(high_y, 0)), slice(low_x, max(high_x, 0))
