import numpy as np
import pytest

from acontrol.masks.listed import ListedMasks
from acontrol.masks.placement import NotPlaced, Placed, Rules, learn_rules, place
from acontrol.masks.real import RealMasks
from acontrol.masks.shape import Mask

SIZE = (80, 80)


def box(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


PRODUCT = box(20, 20, 40, 40)
SPOTS = {f"{n}": box(25 + 3 * n, 30, 8, 10) for n in range(4)}


def test_masks_are_placed_on_the_product_in_different_places() -> None:
    rules = learn_rules(list(SPOTS.values()), [PRODUCT] * len(SPOTS))
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
    rules = learn_rules(outside, [PRODUCT] * 3)
    assert not rules.on_product
    places = {
        bool((place(RealMasks(SPOTS), PRODUCT, rules, cells=8, seed=n).mask & PRODUCT).any())
        for n in range(40)
    }
    assert places == {True, False}


def test_enough_training_masks_determine_the_place() -> None:
    masks = [box(22, 22 + n % 3, 6, 8) for n in range(12)]
    rules = learn_rules(masks, [PRODUCT] * 12)
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
