"""Which drawn masks are like a defect's training masks, and why the others are not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import ndimage

from acontrol.masks.shape import Mask, sides_of
from acontrol.masks.statistics import measure

_SLACK = 1.3  # Area and elongation may leave their training range by this factor.
_BORDER = 1 / 3  # Most of a border row or column that may be on, as AnomalyDiffusion has it.
_EIGHT = np.ones((3, 3))


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
