"""What the model sees while it draws: the whole image, or a square around a small defect."""

from dataclasses import dataclass

from acontrol.masks.shape import Mask, bounds, label_components

AUTO_CROP = 4.0  # Side of the square, in longest sides of the defect.
_MAGNIFY = 4  # Largest enlargement of a square: beyond, the normal image is only blur.

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    """A part of an image that is drawn at once.

    Attributes:
        box: Left, top, right and bottom of what the model sees.
        mask: (height, width) of the whole image: where to draw, all of it inside the box.
    """

    box: Box
    mask: Mask


def crops(mask: Mask, crop: float | None, resolution: int) -> list[Crop]:
    """Divide a mask into crops, drawn one after the other.

    Connected components that reach into each other's squares share a crop; components far
    apart have a crop each, so that each is drawn at the model's resolution.

    Args:
        mask: (height, width), not empty.
        crop: Side of the square in longest sides of the component; 0 is the whole image; None
            is `AUTO_CROP` where the image is larger than the model's resolution, else 0.
        resolution: The model's.
    """
    height, width = mask.shape
    if crop is None:
        crop = AUTO_CROP if max(height, width) > resolution else 0
    if crop == 0:
        return [Crop((0, 0, width, height), mask)]
    labels, sizes = label_components(mask)
    components = [labels == number for number in range(1, len(sizes) + 1)]
    least = resolution / _MAGNIFY
    boxes = [_square(component, crop, least) for component in components]
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
        boxes[first] = _square(components[first], crop, least)
        first = 0
    return [Crop(box, component) for box, component in zip(boxes, components, strict=True)]


def _square(component: Mask, crop: float, least: float) -> Box:
    """A square around a component, moved into the image, and cut where it does not fit."""
    left, top, right, bottom = bounds(component)
    height, width = component.shape
    side = round(max(crop * max(right - left, bottom - top), least))
    side = max(side, right - left, bottom - top)
    across, down = min(side, width), min(side, height)
    x = min(max((left + right - across) // 2, 0), width - across)
    y = min(max((top + bottom - down) // 2, 0), height - down)
    return x, y, x + across, y + down


def _overlaps(box: Box, component: Mask) -> bool:
    """Whether a part of a component is in a box, where it would be drawn over."""
    return bool(component[box[1] : box[3], box[0] : box[2]].any())
