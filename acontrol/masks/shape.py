"""What every source of masks gives: a shape, and perhaps its place."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Side = str
SIDES: tuple[Side, ...] = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Shape:
    """A defect's pixels, cut out.

    Attributes:
        pixels: (height, width), no empty row or column at its edges.
        at: Row and column of its top left pixel in the image; None where it may go anywhere.
        origin: Name of the mask that it was made from, if there was one.
    """

    pixels: Mask
    at: tuple[int, int] | None = None
    origin: str | None = None


class MaskSource(Protocol):
    """Makes shapes. One source serves one category and defect."""

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Make a shape.

        Args:
            size: Height and width in pixels of the image that it is for.
            min_pixels: The shape has at least as many pixels.
            rng: All of its randomness.

        Returns:
            The shape, or why this time there is none.
        """
        ...


def cut_out(mask: Mask, origin: str | None = None) -> Shape:
    """The pixels of a mask that is as large as its image, with their place.

    Raises:
        ValueError: If the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        raise ValueError("the mask is empty")
    top, left = int(rows[0]), int(columns[0])
    pixels = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    return Shape(np.ascontiguousarray(pixels), (top, left), origin)


def sides_of(mask: Mask) -> frozenset[Side]:
    """The image's edges that a mask touches."""
    edges = (mask[:, 0], mask[0], mask[:, -1], mask[-1])
    return frozenset(side for side, edge in zip(SIDES, edges, strict=True) if edge.any())
