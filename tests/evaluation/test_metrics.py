"""Metrics against scikit-learn, torchmetrics and written-out definitions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from acontrol.evaluation.metrics import (
    COARSE_THRESHOLDS,
    PRO_LIMIT,
    average_precision,
    count,
    f1_max,
    region_weights,
    roc_area,
)

NEAR = {"rel": 0, "abs": 1e-6}


def aupro_written_out(maps: np.ndarray, truth: np.ndarray, limit: float) -> float:
    """Threshold by threshold, region by region, as Bergmann et al. define it."""
    regions = []
    for number, mask in enumerate(truth):
        labels, num_regions = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(number, labels == label) for label in range(1, num_regions + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        detected = maps >= threshold
        overlap = np.mean([detected[number][region].mean() for number, region in regions])
        points.append((float(detected[~truth].mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            cut = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + cut) / 2
    return area / limit


def case(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    truth = rng.random(400) < 0.2
    scores = rng.random(400).astype(np.float32)
    match name:
        case "informative":
            scores = (scores + truth) / 2
        case "ties":
            scores = np.round(scores + truth, 1) / 2
        case "constant":
            scores = np.full(400, 0.25, np.float32)
        case "inverted":
            scores = (1 - truth).astype(np.float32)
        case "perfect":
            scores = truth.astype(np.float32)
        case "tiny":  # Like probabilities of a confident detector.
            scores = scores * np.float32(1e-30)
        case "one positive":
            truth = np.arange(400) == 17
        case "one negative":
            truth = np.arange(400) != 17
        case "two pixels":
            truth, scores = np.array([True, False]), np.array([0.5, 0.5], np.float32)
    return scores, truth


CASES = [
    "random",
    "informative",
    "ties",
    "constant",
    "inverted",
    "perfect",
    "tiny",
    "one positive",
    "one negative",
    "two pixels",
]


@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_scikit_learns_and_torchmetrics(name: str) -> None:
    scores, truth = case(name)
    (counts,) = count(scores, truth)
    auroc, precision = float(roc_area(counts)), float(average_precision(counts))
    assert auroc == pytest.approx(roc_auc_score(truth, scores), **NEAR)
    assert precision == pytest.approx(average_precision_score(truth, scores), **NEAR)
    p, r, _ = precision_recall_curve(truth, scores)
    best = (2 * p * r / np.maximum(p + r, 1e-30)).max()
    assert float(f1_max(counts)) == pytest.approx(best, **NEAR)
    as_tensors = torch.from_numpy(scores), torch.from_numpy(truth).long()
    assert auroc == pytest.approx(float(binary_auroc(*as_tensors)), **NEAR)
    assert precision == pytest.approx(float(binary_average_precision(*as_tensors)), **NEAR)


@pytest.mark.parametrize("name", CASES)
def test_the_coarse_f1_is_the_best_of_21_thresholds(name: str) -> None:
    scores, truth = case(name)
    best = max(f1_score(truth, scores >= 0.05 * step, zero_division=0) for step in range(21))
    assert len(COARSE_THRESHOLDS) == 21
    coarse = float(f1_max(count(scores, truth)[0], COARSE_THRESHOLDS))
    assert coarse == pytest.approx(best, **NEAR)


@pytest.mark.parametrize("levels", [0, 7])
@pytest.mark.parametrize("limit", [0.05, PRO_LIMIT, 1.0])
def test_aupro_is_its_definition(levels: int, limit: float) -> None:
    rng = np.random.default_rng(5)
    truth = ndimage.binary_opening(rng.random((3, 14, 17)) < 0.35, np.ones((1, 2, 2)))
    truth[2] = False
    maps = 0.6 * rng.random((3, 14, 17)) + 0.4 * truth * rng.random((3, 14, 17))
    maps = np.round(maps * levels) / levels if levels else maps
    weights = np.stack(region_weights(truth))
    assert weights.sum() == pytest.approx(
        sum(ndimage.label(mask, np.ones((3, 3)))[1] for mask in truth)
    )
    area = float(roc_area(count(maps, weights)[0], limit))
    assert area == pytest.approx(aupro_written_out(maps, truth, limit), **NEAR)


def test_regions_that_touch_at_a_corner_are_one() -> None:
    mask = np.eye(3, dtype=bool)
    assert region_weights([mask])[0].sum() == pytest.approx(1)
    assert region_weights([np.zeros((3, 3), bool)])[0].sum() == 0


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40).filter(
        lambda rows: 0 < sum(true for _, true in rows) < len(rows)
    )
)
def test_any_ties_agree_with_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([level / 5 for level, _ in rows])
    truth = np.array([true for _, true in rows])
    (counts,) = count(scores, truth)
    assert float(roc_area(counts)) == pytest.approx(roc_auc_score(truth, scores), **NEAR)
    expected = average_precision_score(truth, scores)
    assert float(average_precision(counts)) == pytest.approx(expected, **NEAR)


def test_undefined_metrics_are_nan() -> None:
    scores = np.linspace(0, 1, 5)
    (normal,) = count(scores, np.zeros(5, bool))
    assert np.isnan([roc_area(normal), average_precision(normal), f1_max(normal)]).all()
    assert np.isnan(f1_max(normal, COARSE_THRESHOLDS))
    (defective,) = count(scores, np.ones(5, bool))
    assert np.isnan(roc_area(defective))
    assert float(average_precision(defective)) == float(f1_max(defective)) == 1
    (empty,) = count(np.zeros(0), np.zeros(0, bool))
    assert np.isnan([roc_area(empty), average_precision(empty), f1_max(empty)]).all()


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        count(np.array([0.5, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="equal shapes"):
        count(np.zeros(3), np.zeros(4, bool))
