"""Where the model looks while it draws: the whole image, or a square around a small defect."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from acontrol.masks.shape import Mask

AUTO_CROP = 4.0  # Side of the square, in longest sides of the defect.
_MAGNIFY = 4  # A square is enlarged at most so much: beyond, the normal image is only blur.

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    """One drawing into an image.

    Attributes:
        box: Left, top, right and bottom of what the model sees.
        mask: (height, width) of the whole image: what is drawn, all of it inside the box.
    """

    box: Box
    mask: Mask


def crops(mask: Mask, crop: float | None, resolution: int) -> list[Crop]:
    """Divide a mask into drawings, one after the other.

    Pieces whose squares hold each other are drawn together; pieces far apart each have a
    square of their own, so that each is drawn at the model's resolution.

    Args:
        mask: (height, width), not empty.
        crop: Side of the square in longest sides of the piece; 0 is the whole image; None is
            `AUTO_CROP` where the image is larger than the model's resolution, else 0.
        resolution: The model's.
    """
    height, width = mask.shape
    whole = (0, 0, width, height)
    if crop is None:
        crop = AUTO_CROP if max(height, width) > resolution else 0
    if crop == 0:
        return [Crop(whole, mask)]
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    pieces = [labels == number for number in range(1, count + 1)]
    least = resolution / _MAGNIFY
    boxes = [_square(piece, crop, least) for piece in pieces]
    first = 0
    while first < len(pieces):
        others = [
            other
            for other in range(first + 1, len(pieces))
            if _holds(boxes[first], pieces[other]) or _holds(boxes[other], pieces[first])
        ]
        if not others:
            first += 1
            continue
        for other in reversed(others):
            pieces[first] = pieces[first] | pieces.pop(other)
            boxes.pop(other)
        boxes[first] = _square(pieces[first], crop, least)
        first = 0
    return [Crop(box, piece) for box, piece in zip(boxes, pieces, strict=True)]


def _square(piece: Mask, crop: float, least: float) -> Box:
    """A square around a piece, moved to lie inside the image, and cut where it cannot."""
    left, top, right, bottom = _bounds(piece)
    height, width = piece.shape
    side = round(max(crop * max(right - left, bottom - top), least))
    side = max(side, right - left, bottom - top)
    across, down = min(side, width), min(side, height)
    x = min(max((left + right - across) // 2, 0), width - across)
    y = min(max((top + bottom - down) // 2, 0), height - down)
    return x, y, x + across, y + down


def _bounds(piece: Mask) -> Box:
    rows, columns = np.flatnonzero(piece.any(axis=1)), np.flatnonzero(piece.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _holds(box: Box, piece: Mask) -> bool:
    """Whether any of a piece lies in a box, where it would be drawn over."""
    return bool(piece[box[1] : box[3], box[0] : box[2]].any())
