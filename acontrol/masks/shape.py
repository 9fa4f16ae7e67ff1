"""Masks, and the shapes that every mask source gives."""

import zlib
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from acontrol.data.crops import bounds

Mask = npt.NDArray[np.bool_]
Side = str
SIDES: tuple[Side, ...] = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Shape:
    """A defect's pixels, cut out.

    Attributes:
        pixels: (height, width), no empty row or column at its edges.
        at: Row and column of its top left pixel in the image; None if it may go anywhere.
        origin: Name of the mask that it was made from, if any.
    """

    pixels: Mask
    at: tuple[int, int] | None = None
    origin: str | None = None


@dataclass(frozen=True)
class PackedMask:
    """A mask held small: a plan has thousands, each as large as its photograph.

    Attributes:
        shape: Height and width.
        data: Its pixels, eight to a byte, compressed.
    """

    shape: tuple[int, int]
    data: bytes

    @classmethod
    def of(cls, mask: Mask) -> Self:
        """Pack a mask, (height, width)."""
        height, width = mask.shape
        return cls((height, width), zlib.compress(np.packbits(mask).tobytes(), 1))

    def bits(self) -> bytes:
        """Its pixels, eight to a byte."""
        return zlib.decompress(self.data)

    def unpacked(self) -> Mask:
        """The mask, (height, width)."""
        bits = np.frombuffer(self.bits(), np.uint8)
        pixels = np.unpackbits(bits, count=self.shape[0] * self.shape[1])
        return pixels.reshape(self.shape).view(bool)


class MaskSource(Protocol):
    """Generates shapes for one category and defect."""

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Generate a shape.

        Args:
            size: Height and width of the image in pixels.
            min_pixels: Fewest pixels of the shape.
            rng: All of its randomness.

        Returns:
            The shape, or why there is none this time.
        """
        ...


@runtime_checkable
class GentleSource(MaskSource, Protocol):
    """A source that can also leave its masks nearly as they are.

    Attributes:
        straight: Whether its masks are so long and thin that what `sample` bends never fits.
    """

    straight: bool

    def sample_gently(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Generate a shape as `sample` does, without a bend or a turn, and within the size."""
        ...


def cut_out(mask: Mask, origin: str | None = None) -> Shape:
    """The shape and place of an image-sized mask.

    Raises:
        ValueError: If the mask is empty.
    """
    left, top, right, bottom = bounds(mask)
    return Shape(np.ascontiguousarray(mask[top:bottom, left:right]), (top, left), origin)


def iou(first: Mask, second: Mask) -> float:
    """Intersection over union, in [0, 1]."""
    return float((first & second).sum() / max(1, (first | second).sum()))


def sides_of(mask: Mask) -> frozenset[Side]:
    """The image's edges that a mask touches."""
    edges = (mask[:, 0], mask[0], mask[:, -1], mask[-1])
    return frozenset(side for side, edge in zip(SIDES, edges, strict=True) if edge.any())
