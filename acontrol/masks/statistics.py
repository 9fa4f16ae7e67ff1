"""Numbers that describe masks, so that made ones can be held against real ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import wasserstein_distance

from acontrol.masks.shape import Mask

_EIGHT = np.ones((3, 3))  # Pixels that touch at a corner belong together.


@dataclass(frozen=True)
class Geometry:
    """One mask in numbers that do not depend on its resolution.

    Attributes:
        area: Share of the image that it covers, in (0, 1].
        elongation: Length over width of the ellipse with its second moments, from 1.
        angle: Direction of that ellipse's long axis, in [0, pi), from x towards y.
        solidity: Share of its bounding box that it covers, in (0, 1].
        parts: Connected parts.
    """

    area: float
    elongation: float
    angle: float
    solidity: float
    parts: int


def measure(mask: Mask) -> Geometry:
    """Describe a mask as large as its image.

    Raises:
        ValueError: If it is empty.
    """
    y, x = np.nonzero(mask)
    if len(x) == 0:
        raise ValueError("the mask is empty")
    # A pixel is a square: 1/12 is its own second moment.
    yy, xx = y.var() + 1 / 12, x.var() + 1 / 12
    xy = float(np.mean((x - x.mean()) * (y - y.mean())))
    root = np.hypot(xx - yy, 2 * xy)
    box = (np.ptp(x) + 1) * (np.ptp(y) + 1)
    return Geometry(
        area=len(x) / mask.size,
        elongation=float(np.sqrt((xx + yy + root) / max(xx + yy - root, 1 / 6))),
        angle=float(0.5 * np.arctan2(2 * xy, xx - yy) % np.pi),
        solidity=len(x) / int(box),
        parts=int(ndimage.label(mask, _EIGHT)[1]),
    )


def elongation(pixels: Mask) -> float:
    """`Geometry.elongation` of some pixels."""
    return measure(pixels).elongation


def spread_of_angles(geometries: Sequence[Geometry]) -> float:
    """Circular standard deviation in radians of the long axes; round masks count less."""
    weights = np.array([1 - 1 / one.elongation for one in geometries]) + 1e-9
    doubled = np.exp(2j * np.array([one.angle for one in geometries]))
    length = min(1.0, float(np.abs(np.sum(weights * doubled)) / weights.sum()))
    # abs: the logarithm of 1 would make it -0.0, which is no standard deviation to numpy.
    return abs(float(np.sqrt(-2 * np.log(max(length, 1e-3))) / 2))


def distance(made: Sequence[Mask], real: Sequence[Mask]) -> float:
    """How far a set of masks is from another in area, elongation and solidity.

    Returns:
        The mean over the three of the Wasserstein distance of their distributions; area and
        elongation as logarithms, so that 0.1 is about a tenth.
    """
    one, other = _features(made), _features(real)
    return float(np.mean([wasserstein_distance(a, b) for a, b in zip(one, other, strict=True)]))


def _features(masks: Sequence[Mask]) -> npt.NDArray[np.float64]:
    found = [measure(mask) for mask in masks]
    rows = [(np.log(one.area), np.log(one.elongation), np.log(one.solidity)) for one in found]
    return np.array(rows, dtype=np.float64).T
