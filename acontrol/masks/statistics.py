"""Geometry of masks, to compare generated masks with training masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.stats import wasserstein_distance

from acontrol.data.crops import bounds, label_components
from acontrol.masks.shape import Mask, sides_of

_SLACK = 1.3  # Area and elongation may leave their training range by this factor.
_BORDER = 1 / 3  # Largest filled share of a border row or column (AnomalyDiffusion's).


@dataclass(frozen=True)
class Geometry:
    """A mask's geometry, independent of its resolution.

    Attributes:
        area: Share of the image that it covers, in (0, 1].
        elongation: Length over width of the ellipse with the same second moments, from 1.
        angle: Direction of that ellipse's long axis, in [0, pi), from x towards y.
        solidity: Share of its bounding box that it covers, in (0, 1].
        parts: Connected components.
    """

    area: float
    elongation: float
    angle: float
    solidity: float
    parts: int


def measure(mask: Mask) -> Geometry:
    """Measure an image-sized mask.

    Raises:
        ValueError: If it is empty.
    """
    left, top, right, bottom = bounds(mask)
    elongation, angle = ellipse(mask)
    pixels = int(mask.sum())
    return Geometry(
        area=pixels / mask.size,
        elongation=elongation,
        angle=angle,
        solidity=pixels / ((right - left) * (bottom - top)),
        parts=len(label_components(mask[top:bottom, left:right])[1]),
    )


def ellipse(mask: Mask) -> tuple[float, float]:
    """Elongation and angle of a mask that is not empty, as in `Geometry`."""
    y, x = np.nonzero(mask)
    # A pixel is a square: 1/12 is its own second moment.
    yy, xx = y.var() + 1 / 12, x.var() + 1 / 12
    xy = float(np.mean((x - x.mean()) * (y - y.mean())))
    root = np.hypot(xx - yy, 2 * xy)
    return (
        float(np.sqrt((xx + yy + root) / max(xx + yy - root, 1 / 6))),
        float(0.5 * np.arctan2(2 * xy, xx - yy) % np.pi),
    )


def spread_of_angles(geometries: Sequence[Geometry]) -> float:
    """Circular standard deviation in radians of the long axes; round masks count less."""
    weights = np.array([1 - 1 / geometry.elongation for geometry in geometries]) + 1e-9
    doubled = np.exp(2j * np.array([geometry.angle for geometry in geometries]))
    length = min(1.0, float(np.abs(np.sum(weights * doubled)) / weights.sum()))
    # abs: the logarithm of 1 gives -0.0, which numpy refuses as a standard deviation.
    return abs(float(np.sqrt(-2 * np.log(max(length, 1e-3))) / 2))


def distance(made: Sequence[Mask], real: Sequence[Mask]) -> float:
    """How far two sets of masks differ in area, elongation and solidity.

    Returns:
        The mean over the three of the Wasserstein distance of their logarithms' distributions;
        0.1 is about a tenth.
    """
    pairs = zip(_logarithms(made), _logarithms(real), strict=True)
    return float(np.mean([wasserstein_distance(first, second) for first, second in pairs]))


def _logarithms(masks: Sequence[Mask]) -> npt.NDArray[np.float64]:
    geometries = [measure(mask) for mask in masks]
    return np.log([(g.area, g.elongation, g.solidity) for g in geometries], dtype=np.float64).T


@dataclass(frozen=True)
class Limits:
    """The range of training masks.

    Attributes:
        area: Least and largest share of the image.
        elongation: Least and largest length over width.
        border: Largest filled share of a border row or column.
        touches: Whether the defect can touch the image's edge.
        speck: Components with a smaller share of the image are noise.
    """

    area: tuple[float, float]
    elongation: tuple[float, float]
    border: float
    touches: bool
    speck: float

    @classmethod
    def of(cls, masks: Sequence[Mask]) -> Self:
        """The range of these masks, each as large as its image and not empty."""
        geometries = [measure(mask) for mask in masks]
        areas = [geometry.area for geometry in geometries]
        lengths = [geometry.elongation for geometry in geometries]
        return cls(
            area=(min(areas) / _SLACK, max(areas) * _SLACK),
            elongation=(min(lengths) / _SLACK, max(lengths) * _SLACK),
            border=max(_BORDER, *(_border(mask) for mask in masks)),
            touches=any(sides_of(mask) for mask in masks),
            speck=min(int(label_components(mask)[1].min()) / mask.size for mask in masks) / 2,
        )

    def check(self, drawn: Mask) -> Mask | str:
        """A drawn mask without its specks, or a few words on why it is rejected."""
        labels, sizes = label_components(drawn)
        kept = 1 + np.flatnonzero(sizes >= self.speck * drawn.size)
        mask = np.isin(labels, kept)
        if not mask.any():
            return "empty"
        if _border(mask) > self.border:
            return "along the border"
        if not self.touches and sides_of(mask):
            return "cropped at the edge"
        shape = measure(mask)
        if not self.area[0] <= shape.area <= self.area[1]:
            return "too small" if shape.area < self.area[0] else "too large"
        if not self.elongation[0] <= shape.elongation <= self.elongation[1]:
            return "too round" if shape.elongation < self.elongation[0] else "too long"
        return mask


def _border(mask: Mask) -> float:
    """The largest filled share of a border row or column."""
    return float(max(edge.mean() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])))
