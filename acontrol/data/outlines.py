"""Masks as outlines and run lengths, as COCO and YOLO write them, and back.

Points are in pixels from the image's upper left corner: pixel (0, 0) covers [0, 1] x [0, 1].
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from contourpy import FillType, contour_generator
from PIL import Image, ImageDraw

Mask = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.float64]
Offsets = npt.NDArray[np.uint32]


def polygon_mask(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Mask:
    """The pixels inside a polygon, by COCO's own rule.

    Args:
        points: At least three; what lies outside the image is cut off.
        size: Width and height.

    Returns:
        (H, W); empty if the polygon is thinner than a pixel.

    Raises:
        ValueError: For fewer points, or one over the image's own size away from it.
    """
    if len(points) < 3:
        raise ValueError(f"a polygon needs three points, and has {len(points)}")
    _require_near(points, size)
    from pycocotools import mask as coco

    flat = [float(value) for point in points for value in point]
    (runs,) = coco.frPyObjects([flat], size[1], size[0])
    return runs_mask(run_lengths(runs["counts"].decode()), size)


def line_mask(
    points: Sequence[tuple[float, float]], width: float, size: tuple[int, int]
) -> Mask:
    """The pixels of a line of this width in pixels through some points, with round ends.

    Raises:
        ValueError: For one point, or one over the image's own size away from it.
    """
    if len(points) < 2:
        raise ValueError(f"a line needs two points, and has {len(points)}")
    _require_near(points, size)
    drawing = Image.new("1", size)
    draw = ImageDraw.Draw(drawing)
    draw.line([*points], fill=1, width=max(1, round(width)))
    mask = np.array(drawing)
    for point in points:
        mask |= circle_mask(point, width / 2, size)
    return mask


def circle_mask(centre: tuple[float, float], radius: float, size: tuple[int, int]) -> Mask:
    """The pixels whose middle lies in a circle.

    Raises:
        ValueError: If the centre is over the image's own size away from it.
    """
    _require_near([centre], size)
    x = np.arange(size[0]) + 0.5 - centre[0]
    y = np.arange(size[1]) + 0.5 - centre[1]
    return np.hypot(x[None], y[:, None]) <= radius


def _require_near(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> None:
    for point in points:
        for value, length in zip(point, size, strict=True):
            if not -length <= value <= 2 * length:
                raise ValueError(
                    f"the point ({point[0]:g}, {point[1]:g}) is far outside the image of "
                    f"{size[0]} x {size[1]} pixels"
                )


def run_lengths(text: str) -> list[int]:
    """The lengths in COCO's compressed form: base 32 from the character "0" on.

    From the fourth on, each is stored as its difference to the one before the last.

    Raises:
        ValueError: For anything else.
    """
    # Not by pycocotools, whose decoder reads past the end of a text that is cut off, and
    # leaves pixels that no run covers as they were in memory.
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("its counts are not COCO's compressed run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(lengths) > 2:
            value += lengths[-2]
        lengths.append(value)
        value = shift = 0
    if shift:
        raise ValueError("its counts are cut off")
    return lengths


def runs_mask(lengths: Sequence[int], size: tuple[int, int]) -> Mask:
    """The mask of run lengths down the columns, of background first.

    Raises:
        ValueError: If they do not cover the image exactly.
    """
    total = size[0] * size[1]
    if any(length < 0 for length in lengths) or sum(lengths) != total:
        raise ValueError(
            f"its runs cover {sum(lengths)} pixels of {size[0]} x {size[1]} = {total}"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, np.array(lengths, dtype=np.int64)).reshape(size).T


def encoded_runs(mask: Mask) -> dict[str, Any]:
    """A mask in COCO's compressed form: its size, as (height, width), and its counts."""
    from pycocotools import mask as coco

    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}


def outlines(mask: Mask) -> list[list[Ring]]:
    """The outlines of a mask's parts.

    They run halfway between pixels in the mask and pixels outside, so that drawing them with
    `polygon_mask` gives back the mask.

    Returns:
        For each part its outer ring, then its holes; each (points, 2), the last point as the
        first.
    """
    padded = np.pad(mask, 1).astype(float)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    # Two lists in this form; others have a third.
    parts, offsets = cast(tuple[list[Ring], list[Offsets]], generator.filled(0.5, 1.5))
    return [
        # The padding moves a pixel's middle from .5 to 1.
        [points[a:b] - 0.5 for a, b in pairwise(o)]
        for points, o in zip(parts, offsets, strict=True)
    ]


def without_holes(rings: Sequence[Ring]) -> Ring:
    """One ring for a part with holes: each is joined by a cut of no width, there and back."""
    outer, *holes = rings
    for hole in holes:
        inner = hole[:-1]
        gaps = ((outer[:, None] - inner[None]) ** 2).sum(axis=2)
        start, end = np.unravel_index(gaps.argmin(), gaps.shape)
        loop = np.roll(inner, -int(end), axis=0)
        outer = np.concatenate([outer[: start + 1], loop, loop[:1], outer[start:]])
    return outer
