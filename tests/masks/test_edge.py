"""A mask at the edge, from its surroundings, is the one of the whole frame."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from acontrol.masks.edge import Bend, largest, signed_distance, stretched
from acontrol.masks.shape import Mask

BOXES = ((-20, 60, 20, 90), (100, -9, 140, 9), (220, 150, 290, 230), (60, -5, 64, 205))


def drawn(box: tuple[int, ...], size: tuple[int, int] = (200, 260)) -> Mask:
    picture = Image.new("L", size[::-1])
    ImageDraw.Draw(picture).ellipse(box, fill=255)
    return np.asarray(picture) > 0


def whole_frame(
    mask: Mask, size: tuple[int, int], count: int, bend: Bend, flips: tuple[bool, bool]
) -> Mask:
    zoom = (1, size[0] / 4, size[1] / 4)
    moved = ndimage.zoom(bend.coarse, zoom, order=3, grid_mode=True, mode="nearest")
    places = np.indices(size) + moved
    for axis in range(2):
        places[axis] *= (mask.shape[axis] - 1) / (size[axis] - 1)
        if flips[axis]:
            places[axis] = mask.shape[axis] - 1 - places[axis]
    field = signed_distance(mask)
    return largest(ndimage.map_coordinates(field, places, order=1, mode="nearest"), count)[0]


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("size", [(200, 260), (90, 400)])
@pytest.mark.parametrize("box", BOXES)
def test_no_pixel_differs(
    box: tuple[int, ...], size: tuple[int, int], flips: tuple[bool, bool]
) -> None:
    mask = drawn(box)
    for pixels, count in ((0.0, 40), (4.0, 700), (9.0, 9000), (2.0, size[0] * size[1])):
        bend = Bend.of(size, pixels, np.random.default_rng(count))
        part, (top, left) = stretched(mask, size, count, bend, flips)
        framed = np.zeros(size, bool)
        framed[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert framed.sum() == count
        assert np.array_equal(framed, whole_frame(mask, size, count, bend, flips))


def test_only_the_surroundings_are_computed() -> None:
    mask = drawn((-20, 600, 20, 660), (2000, 2600))
    bend = Bend.of((2400, 2400), 3, np.random.default_rng(0))
    part, _ = stretched(mask, (2400, 2400), int(mask.sum()), bend, (False, True))
    assert part.size < 20 * mask.sum()


def test_a_bend_is_within_its_bound() -> None:
    for seed in range(20):
        bend = Bend.of((50, 80), 3, np.random.default_rng(seed))
        assert np.abs(bend.at(slice(None), slice(None))).max() <= bend.most
