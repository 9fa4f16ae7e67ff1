"""What the model sees, in training and drawing: a whole image, or a square around a defect.

Both cut the same squares from original pixels, so that details are drawn at the size at which
they were learnt.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

_MAGNIFY = 4  # Largest enlargement of a square: beyond, the normal image is only blur.
# Of a square of the largest size, what a part of a longer defect takes, and by how much it
# reaches over each neighbour, to fade into it: 3/4 in all. With less, patches show as squares.
_PART = 1 / 2
_SHARED = 1 / 8

Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]


def bounds(mask: Mask) -> tuple[int, int, int, int]:
    """The bounding box as left, top, right, bottom; right and bottom are exclusive.

    Raises:
        ValueError: If the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        raise ValueError("the mask is empty")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def grown(box: Box, by: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a box made larger on each side, within an image's shape."""
    left, top, right, bottom = box
    return (
        slice(max(0, top - by), min(shape[0], bottom + by)),
        slice(max(0, left - by), min(shape[1], right + by)),
    )


def label_components(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Label the connected components; pixels that touch at a corner are connected.

    Returns:
        Labels from 1, 0 outside the mask, and the pixels of each component.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]


@dataclass(frozen=True)
class Crop:
    """A part of an image that is drawn at once.

    Attributes:
        box: Left, top, right and bottom of what the model sees.
        defect: (height, width) of the whole image: what is drawn here, or partly here.
        part: Rows and columns of the part that is, if it is one of a long defect; parts share
            their edges.
        shared: Pixels that two neighbouring parts have in common.
    """

    box: Box
    defect: Mask
    part: tuple[slice, slice] | None = None
    shared: int = 0

    @property
    def seen(self) -> Mask:
        """All of the defect that is in view, of the box's size."""
        left, top, right, bottom = self.box
        return self.defect[top:bottom, left:right]

    @property
    def mask(self) -> Mask:
        """Where to draw, of the box's size."""
        if self.part is None:
            return self.seen
        own = np.zeros_like(self.seen)
        own[self._here] = self.seen[self._here]
        return own

    @property
    def weight(self) -> npt.NDArray[np.float64]:
        """Of the part at each pixel of the defect, of the box's size; 0 elsewhere.

        It falls towards every edge that the part has in common with another.
        """
        weight = np.zeros(self.seen.shape)
        if self.part is None:
            return weight + 1
        left, top, right, bottom = bounds(self.defect)
        down, across = (
            _trapezoid(own, self.shared, rises=own.start > first, falls=own.stop < end)
            for own, first, end in zip(self.part, (top, left), (bottom, right), strict=True)
        )
        weight[self._here] = down[:, None] * across
        return weight * self.seen  # Another defect's parts may lie in this rectangle.

    @property
    def _here(self) -> tuple[slice, slice]:
        """Where the part is in the box."""
        assert self.part is not None
        left, top, *_ = self.box
        rows, columns = self.part
        return (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )


def crops(mask: Mask, crop: float, resolution: int, limit: int | None = None) -> list[Crop]:
    """Divide a mask into crops, drawn one after the other.

    Connected components that reach into each other's squares share a crop; components far
    apart have a crop each, so that each is drawn at the model's resolution. A defect longer
    than three quarters of a square of ``limit`` pixels has several along it.

    Args:
        mask: (height, width), not empty.
        crop: Side of the square in longest sides of the component; 0 is the whole image.
        resolution: The model's.
        limit: Largest side of a square in pixels; None for any.
    """
    height, width = mask.shape
    if crop == 0:
        return [Crop((0, 0, width, height), mask)]
    labels, sizes = label_components(mask)
    components = [labels == number for number in range(1, len(sizes) + 1)]
    least, most = resolution / _MAGNIFY, math.inf if limit is None else limit

    def square(component: Mask) -> Box:
        return _square(bounds(component), mask.shape, crop, least, most)

    boxes = [square(component) for component in components]
    first = 0
    while first < len(components):
        others = [
            other
            for other in range(first + 1, len(components))
            if _overlaps(boxes[first], components[other])
            or _overlaps(boxes[other], components[first])
        ]
        if not others:
            first += 1
            continue
        for other in reversed(others):
            components[first] = components[first] | components.pop(other)
            boxes.pop(other)
        boxes[first] = square(components[first])
        first = 0
    return [
        own
        for box, component in zip(boxes, components, strict=True)
        for own in ([Crop(box, component)] if limit is None else _along(component, box, limit))
    ]


def around(mask: Mask, crop: float) -> Crop:
    """One crop for a whole mask: a square so many times as large as it.

    Args:
        mask: (height, width), not empty.
        crop: Side of the square in longest sides of the mask.
    """
    return Crop(_square(bounds(mask), mask.shape, crop, 0, math.inf), mask)


def target_view(
    image: Image.Image,
    mask: Image.Image,
    crop: float,
    resolution: int,
    limit: int | None = None,
) -> tuple[Image.Image, Image.Image]:
    """What training sees of an image: of several crops the one with most of the defect.

    Its mask is of all that is in view, also of a defect of which drawing draws a part there.
    """
    if crop == 0:
        return image, mask
    parts = crops(np.asarray(mask), crop, resolution, limit)
    box = max(parts, key=lambda part: int(part.mask.sum())).box
    return image.crop(box), mask.crop(box)


def _square(inner: Box, shape: tuple[int, ...], crop: float, least: float, most: float) -> Box:
    """A square around a box, moved into the image, and cut where it does not fit.

    Its side is ``crop`` times the box's, but within the bounds; what is larger fits.
    """
    left, top, right, bottom = inner
    height, width = shape
    side = round(min(max(crop * max(right - left, bottom - top), least), most))
    side = max(side, right - left, bottom - top)
    across, down = min(side, width), min(side, height)
    x = min(max((left + right - across) // 2, 0), width - across)
    y = min(max((top + bottom - down) // 2, 0), height - down)
    return x, y, x + across, y + down


def _along(defect: Mask, box: Box, limit: int) -> list[Crop]:
    """Squares of that side along a defect, or its own box if it fits in one."""
    left, top, right, bottom = bounds(defect)
    if max(right - left, bottom - top) <= (_PART + 2 * _SHARED) * limit:
        return [Crop(box, defect)]
    shared = math.ceil(_SHARED * limit)
    parts = []
    for first, last in _divided(top, bottom, _PART * limit):
        for start, end in _divided(left, right, _PART * limit):
            if not defect[first:last, start:end].any():
                continue
            rows, columns = grown((start, first, end, last), shared, defect.shape)
            inner = columns.start, rows.start, columns.stop, rows.stop
            square = _square(inner, defect.shape, 0, limit, limit)
            part = rows, columns
            parts.append(Crop(square, defect, part, 2 * shared))
    if len({part.box for part in parts}) == 1:
        return [Crop(parts[0].box, defect)]
    return parts


def _trapezoid(span: slice, over: int, *, rises: bool, falls: bool) -> npt.NDArray[np.float64]:
    """1 along a span, but growing over so many pixels at its start, or falling at its end."""
    weight = np.ones(span.stop - span.start)
    ramp = (np.arange(len(weight)) + 0.5) / over
    if rises:
        weight = np.minimum(weight, ramp)
    if falls:
        weight = np.minimum(weight, ramp[::-1])
    return weight


def _divided(start: int, end: int, longest: float) -> list[tuple[int, int]]:
    """Equal spans from start to end, none over the longest but for rounding."""
    count = math.ceil((end - start) / longest)
    edges = [start + (end - start) * number // count for number in range(count + 1)]
    return list(pairwise(edges))


def _overlaps(box: Box, component: Mask) -> bool:
    """Whether a part of a component is in a box, where it would be drawn over."""
    return bool(component[box[1] : box[3], box[0] : box[2]].any())
