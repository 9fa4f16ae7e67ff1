"""Which drawings count as masks, and why the others are rejected."""

import numpy as np
import pytest

from acontrol.masks.listed import LearnedMasks
from acontrol.masks.shape import Mask
from acontrol.masks.statistics import Limits, measure

SIDE = 60


def box(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


INSIDE = [box(20, 20, 6, 12), box(30, 10, 8, 14)]
AT_EDGE = [box(0, 20, 8, 30), box(52, 10, 8, 30)]


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (box(0, 0, 0, 0), "empty"),
        (box(10, 10, 1, 1), "empty"),  # A speck.
        (box(0, 5, 4, 21), "along the border"),
        (box(0, 30, 7, 13), "cropped at the edge"),
        (box(20, 20, 6, 9), "too small"),
        (box(20, 20, 10, 16), "too large"),
        (box(20, 20, 10, 10), "too round"),
        (box(20, 10, 4, 20), "too long"),
    ],
)
def test_a_drawing_unlike_the_training_masks_is_rejected(drawn: Mask, reason: str) -> None:
    assert Limits.of(INSIDE).check(drawn) == reason


def test_a_drawing_like_the_training_masks_is_kept_without_its_specks() -> None:
    good = box(25, 25, 7, 13)
    dotted = good | box(5, 50, 1, 2)
    assert np.array_equal(Limits.of(INSIDE).check(dotted), good)
    assert np.array_equal(Limits.of([dotted]).check(dotted), dotted), "as small as theirs"


def test_a_defect_at_the_edge_may_touch_it() -> None:
    result = Limits.of(AT_EDGE).check(box(0, 12, 8, 29))
    assert not isinstance(result, str)
    assert Limits.of(AT_EDGE).check(box(0, 10, 7, 40)) == "along the border"


def test_learned_shapes_keep_share_and_proportions_in_any_image() -> None:
    mask = box(20, 18, 8, 16) | box(28, 18, 4, 4)
    source = LearnedMasks({"m": mask})
    for size in [(60, 60), (240, 60), (200, 330)]:
        shapes = [source.sample(size, 1, np.random.default_rng(seed)) for seed in range(6)]
        for shape in shapes:
            assert not isinstance(shape, str)
            assert shape.at is None, "placed by the rules"
            assert shape.origin == "m"
            frame = np.zeros(size, bool)
            frame[: shape.pixels.shape[0], : shape.pixels.shape[1]] = shape.pixels
            assert measure(frame).area == pytest.approx(measure(mask).area, rel=0.1)
            assert measure(frame).elongation == pytest.approx(measure(mask).elongation, rel=0.1)
        assert len({shape.pixels.tobytes() for shape in shapes}) == 2, "upright and rotated"
    assert LearnedMasks({"m": mask}).sample((60, 60), 400, np.random.default_rng(0)) == (
        "m is smaller than one attention cell"
    )


def test_learned_shapes_at_the_edge_stay_there() -> None:
    shape = LearnedMasks({"top": AT_EDGE[0]}).sample((120, 90), 1, np.random.default_rng(0))
    assert not isinstance(shape, str)
    assert shape.at == (0, 30)
    assert shape.pixels.shape == (16, 45)
