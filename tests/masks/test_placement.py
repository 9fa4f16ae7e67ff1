from pathlib import Path

import numpy as np
import pytest

from acontrol.data.mvtec import open_folder
from acontrol.generation.plan import Planner
from acontrol.generation.settings import Sampling
from acontrol.masks.listed import ListedMasks
from acontrol.masks.placement import NotPlaced, Placed, Rules, learn_rules, place
from acontrol.masks.real import RealMasks
from acontrol.masks.shape import Mask, MaskSource

SIZE = (80, 80)


def box(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


PRODUCT = box(20, 20, 40, 40)
SPOTS = {f"{n}": box(25 + 3 * n, 30, 8, 10) for n in range(4)}


def test_masks_are_placed_on_the_product_in_different_places() -> None:
    rules = learn_rules(zip(list(SPOTS.values()), [PRODUCT] * len(SPOTS), strict=True))
    assert rules.on_product
    assert rules.places == ()
    corners = set()
    for seed in range(60):
        placed = place(RealMasks(SPOTS), PRODUCT, rules, cells=16, seed=seed)
        assert isinstance(placed, Placed)
        assert placed.mask.any()
        assert not (placed.mask & ~PRODUCT).any()
        assert placed.mask.sum() >= 80 * 80 / 16**2
        corners.add(tuple(np.argwhere(placed.mask)[0]))
        again = place(RealMasks(SPOTS), PRODUCT, rules, cells=16, seed=seed)
        assert np.array_equal(placed.mask, again.mask)
    assert len(corners) > 40


def test_a_defect_off_the_product_may_be_placed_anywhere() -> None:
    outside = [box(0, 0, 10, 10), box(70, 70, 10, 10), box(0, 60, 10, 10)]
    rules = learn_rules(zip(outside, [PRODUCT] * 3, strict=True))
    assert not rules.on_product
    places = {
        bool((place(RealMasks(SPOTS), PRODUCT, rules, cells=8, seed=n).mask & PRODUCT).any())
        for n in range(40)
    }
    assert places == {True, False}


def test_enough_training_masks_determine_the_place() -> None:
    masks = [box(22, 22 + n % 3, 6, 8) for n in range(12)]
    rules = learn_rules(zip(masks, [PRODUCT] * 12, strict=True))
    assert len(rules.places) == 12
    source = RealMasks({str(n): mask for n, mask in enumerate(masks)})
    for seed in range(30):
        placed = place(source, PRODUCT, rules, cells=16, seed=seed)
        row, column = np.argwhere(placed.mask).mean(axis=0)
        assert row < 32
        assert column < 36


@pytest.mark.parametrize(
    ("mask", "product", "cells", "reason"),
    [
        (box(0, 0, 10, 10), PRODUCT, 16, "less than 95% of it would lie on the product"),
        (box(30, 30, 2, 2), PRODUCT, 8, "m is smaller than one attention cell"),
        (box(30, 30, 8, 8), np.zeros(SIZE, bool), 8, "the image shows no product"),
    ],
)
def test_a_mask_that_cannot_be_placed_gives_the_reason(
    mask: Mask, product: Mask, cells: int, reason: str
) -> None:
    placed = place(ListedMasks({"m": mask}), product, Rules(), cells=cells, seed=0)
    assert isinstance(placed, NotPlaced)
    assert reason in placed.reason


def scratches(height: int, width: int, length: int, thick: int = 1) -> dict[str, Mask]:
    """Three straight scratches along the image's longer side."""
    masks = {}
    for number in range(3):
        mask = np.zeros((min(height, width), max(height, width)), bool)
        mask[7 + 9 * number : 7 + 9 * number + thick, 20 : 20 + length + 10 * number] = True
        masks[str(number)] = mask if height < width else np.ascontiguousarray(mask.T)
    return masks


@pytest.mark.parametrize(
    ("size", "length", "thick"),
    [((256, 256), 190, 1), ((1024, 1024), 600, 1), ((40, 2000), 900, 1), ((2000, 40), 1500, 3)],
)
def test_straight_scratches_and_strips_find_a_place(
    size: tuple[int, int], length: int, thick: int
) -> None:
    masks = scratches(*size, length, thick)
    source, everywhere = RealMasks(masks), np.ones(size, bool)
    for seed in range(3):
        placed = place(source, everywhere, Rules(), cells=16, seed=seed)
        assert isinstance(placed, Placed)
        assert placed.mask.sum() >= np.prod(size) / 16**2  # One attention cell.
        assert int(placed.mask.sum()) >= length
        rows, columns = np.nonzero(placed.mask)
        long = np.ptp(rows if size[0] >= size[1] else columns) + 1
        assert long >= length  # Thickened where it was too small, and not shortened.


def test_what_finds_a_place_bent_is_bent_all_the_same() -> None:
    """The gentle tries come after the others, and change none of them."""
    blob = np.zeros((64, 64), bool)
    blob[20:30, 20:34] = True
    source = RealMasks({"a": blob, "b": blob.T})
    plain = Unbending(source)
    everywhere = np.ones((64, 64), bool)
    assert not source.straight
    for seed in range(4):
        first = place(source, everywhere, Rules(), cells=16, seed=seed)
        second = place(plain, everywhere, Rules(), cells=16, seed=seed)
        assert isinstance(first, Placed) and isinstance(second, Placed)
        np.testing.assert_array_equal(first.mask, second.mask)


class Unbending:
    """A source without gentle shapes."""

    def __init__(self, source: MaskSource):
        self.sample = source.sample


def test_a_scratch_that_reaches_the_edge_stays_there() -> None:
    masks = {}
    for number in range(3):
        masks[str(number)] = np.zeros((128, 128), bool)
        masks[str(number)][30 + 20 * number, : 90 + number] = True
    placed = place(RealMasks(masks), np.ones((128, 128), bool), Rules(), cells=16, seed=1)
    assert isinstance(placed, Placed) and placed.mask[:, 0].any()


def test_small_defects_stay_small_where_squares_are_drawn(built_in_data: Path) -> None:
    masks = {"a": box(30, 30, 2, 3), "b": box(50, 40, 3, 3)}
    everywhere = np.ones(SIZE, bool)

    def areas(cells: int | None) -> list[int]:
        source = RealMasks(masks)
        placed = [place(source, everywhere, Rules(), cells=cells, seed=n) for n in range(8)]
        return [int(own.mask.sum()) for own in placed]

    assert max(areas(None)) < 16
    assert min(areas(16)) >= 25  # A cell of 5 x 5 pixels.
    planner = Planner(open_folder(built_in_data), split="all", cells=16, crop=4)
    assert planner.cells(Sampling()) is None
    assert planner.cells(Sampling(crop=0)) == 16
