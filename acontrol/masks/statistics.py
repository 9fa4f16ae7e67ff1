"""Numbers that describe masks, so that made ones can be held against real ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import wasserstein_distance

from acontrol.masks.shape import Mask, sides_of

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


_SLACK = 1.3  # Area and elongation may leave their training range by this factor.
_BORDER = 1 / 3  # Most of a border row or column that may be on, as AnomalyDiffusion has it.


@dataclass(frozen=True)
class Limits:
    """What training masks allow.

    Attributes:
        area: Least and largest share of the image.
        elongation: Least and largest length over width.
        border: Most of a border row or column that may be on.
        touches: Whether the defect can touch the image's edge.
        speck: Parts with a smaller share of the image are noise.
    """

    area: tuple[float, float]
    elongation: tuple[float, float]
    border: float
    touches: bool
    speck: float

    @classmethod
    def of(cls, masks: Sequence[Mask]) -> Self:
        """Read them from training masks, each as large as its image and not empty."""
        found = [measure(mask) for mask in masks]
        areas = [one.area for one in found]
        lengths = [one.elongation for one in found]
        return cls(
            area=(min(areas) / _SLACK, max(areas) * _SLACK),
            elongation=(min(lengths) / _SLACK, max(lengths) * _SLACK),
            border=max(_BORDER, *(_border(mask) for mask in masks)),
            touches=any(sides_of(mask) for mask in masks),
            speck=min(float(_parts(mask)[1].min()) / mask.size for mask in masks) / 2,
        )

    def check(self, drawn: Mask) -> Mask | str:
        """Take a drawn mask without its specks, or say in a few words why not."""
        labels, sizes = _parts(drawn)
        kept = 1 + np.flatnonzero(sizes >= self.speck * drawn.size)
        mask = np.isin(labels, kept)
        if not mask.any():
            return "empty"
        if _border(mask) > self.border:
            return "along the border"
        if not self.touches and sides_of(mask):
            return "cut off at the edge"
        shape = measure(mask)
        if not self.area[0] <= shape.area <= self.area[1]:
            return "too small" if shape.area < self.area[0] else "too large"
        if not self.elongation[0] <= shape.elongation <= self.elongation[1]:
            return "too round" if shape.elongation < self.elongation[0] else "too long"
        return mask


def _border(mask: Mask) -> float:
    """The largest share of a border row or column that is on."""
    return float(max(edge.mean() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])))


def _parts(mask: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Numbered connected parts, and the pixels of each."""
    labels, count = ndimage.label(mask, _EIGHT)
    return labels, ndimage.sum_labels(mask, labels, np.arange(1, count + 1))
