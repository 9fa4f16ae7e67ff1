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
# reaches over its neighbours, so that none fades out before the next begins: together 3/4.
_PART = 5 / 8
_SHARED = 1 / 16

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
        mask: (height, width) of the whole image: where to draw, all of it inside the box.
            Parts of one long defect share their edges.
        whole: (height, width), the long defect that this is a part of, if it is one.
    """

    box: Box
    mask: Mask
    whole: Mask | None = None


def crops(mask: Mask, crop: float, resolution: int, limit: int | None = None) -> list[Crop]:
    """Divide a mask into crops, drawn one after the other.

    Connected components that reach into each other's squares share a crop; components far
    apart have a crop each, so that each is drawn at the model's resolution. A defect too long
    for a square of ``limit`` pixels has several along it.

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
    boxes = [_square(component, crop, least, most) for component in components]
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
        boxes[first] = _square(components[first], crop, least, most)
        first = 0
    result = []
    for box, component in zip(boxes, components, strict=True):
        parts = [component] if limit is None else _parts(component, limit)
        if len(parts) > 1:
            squares = [_square(part, crop, most, most) for part in parts]
            result += [
                Crop(box, part, component) for box, part in zip(squares, parts, strict=True)
            ]
        else:
            result.append(Crop(box, component))
    return result


def around(mask: Mask, crop: float) -> Crop:
    """One crop for a whole mask: a square so many times as large as it.

    Args:
        mask: (height, width), not empty.
        crop: Side of the square in longest sides of the mask.
    """
    return Crop(_square(mask, crop, 0, math.inf), mask)


def target_view(
    image: Image.Image,
    mask: Image.Image,
    crop: float,
    resolution: int,
    limit: int | None = None,
) -> tuple[Image.Image, Image.Image]:
    """What training sees of an image: of several crops the one with most of the defect."""
    if crop == 0:
        return image, mask
    parts = crops(np.asarray(mask), crop, resolution, limit)
    box = max(parts, key=lambda part: int(part.mask.sum())).box
    return image.crop(box), mask.crop(box)


def _square(component: Mask, crop: float, least: float, most: float) -> Box:
    """A square around a component, moved into the image, and cut where it does not fit.

    Its side is ``crop`` times the component's, but within the bounds; what is larger fits.
    """
    left, top, right, bottom = bounds(component)
    height, width = component.shape
    side = round(min(max(crop * max(right - left, bottom - top), least), most))
    side = max(side, right - left, bottom - top)
    across, down = min(side, width), min(side, height)
    x = min(max((left + right - across) // 2, 0), width - across)
    y = min(max((top + bottom - down) // 2, 0), height - down)
    return x, y, x + across, y + down


def _parts(component: Mask, limit: int) -> list[Mask]:
    """Divide a component along its bounding box into parts that fit in squares of a side."""
    left, top, right, bottom = bounds(component)
    if max(right - left, bottom - top) <= (_PART + 2 * _SHARED) * limit:
        return [component]
    shared = math.ceil(_SHARED * limit)
    parts = []
    for first, last in _divided(top, bottom, _PART * limit):
        for start, end in _divided(left, right, _PART * limit):
            if not component[first:last, start:end].any():
                continue
            own = grown((start, first, end, last), shared, component.shape)
            part = np.zeros_like(component)
            part[own] = component[own]
            parts.append(part)
    return parts


def _divided(start: int, end: int, longest: float) -> list[tuple[int, int]]:
    """Equal spans from start to end, none over the longest."""
    count = math.ceil((end - start) / longest)
    edges = [start + (end - start) * number // count for number in range(count + 1)]
    return list(pairwise(edges))


def _overlaps(box: Box, component: Mask) -> bool:
    """Whether a part of a component is in a box, where it would be drawn over."""
    return bool(component[box[1] : box[3], box[0] : box[2]].any())
