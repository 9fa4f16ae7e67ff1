"""Outlines and run lengths of masks."""

import numpy as np
from pycocotools import mask as coco_masks

from acontrol.data.outlines import (
    encoded_runs,
    outlines,
    polygon_mask,
    run_lengths,
    runs_mask,
    without_holes,
)

RNG = np.random.default_rng(3)


def test_run_lengths_are_cocos() -> None:
    for share in (0, 0.02, 0.5, 0.98, 1):
        mask = RNG.random((37, 53)) < share
        runs = encoded_runs(mask)
        assert (runs_mask(run_lengths(runs["counts"]), (53, 37)) == mask).all()
        theirs = coco_masks.frPyObjects(
            {"size": [37, 53], "counts": run_lengths(runs["counts"])}, 37, 53
        )
        assert theirs["counts"].decode() == runs["counts"]


def test_outlines_give_back_their_mask() -> None:
    for share in (0.02, 0.3, 0.6, 1):
        mask = RNG.random((23, 31)) < share
        back = np.zeros_like(mask)
        for rings in outlines(mask):
            back |= polygon_mask([*map(tuple, without_holes(rings))], (31, 23))
        assert (back == mask).all()
