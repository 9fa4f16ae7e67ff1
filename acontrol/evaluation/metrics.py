"""Metrics of ranked scores, exact and for many resamples at once.

Scores are sorted once into counts at descending thresholds, from which all metrics follow.
Counts may have leading axes, one entry per bootstrap resample. Metrics are in [0, 1], and NaN
where undefined: AUROC and AUPRO without both classes, the others without positives.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float64]

COARSE_THRESHOLDS: FloatArray = np.arange(21) / 20  # Step 0.05, as in the published scripts.
PRO_LIMIT = 0.3  # False positive rate up to which the PRO curve counts (Bergmann et al.).


@dataclass(frozen=True)
class Counts:
    """Cumulative weights of the scores at or above each threshold.

    Attributes:
        thresholds: (bins,), strictly descending.
        positives: (..., bins), of positives.
        negatives: (..., bins), of negatives.
    """

    thresholds: FloatArray
    positives: FloatArray
    negatives: FloatArray


def count(
    scores: npt.NDArray[np.floating], *positives: npt.NDArray[np.bool_] | FloatArray
) -> list[Counts]:
    """Count exactly, ties together, one or several labellings with a single sort.

    Args:
        scores: Any shape, finite; higher is more anomalous.
        positives: Labellings of the same shape: True or a weight for positives, else 0.

    Raises:
        ValueError: If shapes differ or a score is not finite.
    """
    for labels in positives:
        if scores.shape != labels.shape:
            raise ValueError(f"need equal shapes, got {scores.shape} and {labels.shape}")
    values = scores.ravel()
    if not np.isfinite(values).all():
        raise ValueError("need finite scores, got NaN or infinity")
    order = np.argsort(-values, kind="stable")
    values = values[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)[: len(values)]

    def cumulative(weights: npt.NDArray[np.generic]) -> FloatArray:
        sums: FloatArray = np.cumsum(weights.ravel()[order], dtype=np.float64)[last]
        return sums

    thresholds = values[last].astype(np.float64)
    return [
        Counts(thresholds, cumulative(labels), cumulative(~np.asarray(labels, bool)))
        for labels in positives
    ]


def roc_area(counts: Counts, limit: float = 1.0) -> FloatArray:
    """Area under the ROC curve up to a false positive rate, divided by that rate.

    With ``limit`` 1 this is the AUROC. With `region_weights` the true positive rate is the
    per-region overlap, and with `PRO_LIMIT` the area is the AUPRO.

    Returns:
        The leading shape of the counts.
    """
    x, y = _rate(counts.negatives), _rate(counts.positives)
    zero = np.zeros((*x.shape[:-1], 1))
    x, y = np.concatenate([zero, x], -1), np.concatenate([zero, y], -1)
    left, right = x[..., :-1], np.minimum(x[..., 1:], limit)
    with np.errstate(invalid="ignore", divide="ignore"):
        gradient = np.diff(y) / np.diff(x)
    gradient = np.where(np.diff(x) > 0, gradient, 0)
    end = y[..., :-1] + gradient * (right - left)
    parts = np.where(left < limit, (right - left) * (y[..., :-1] + end) / 2, 0)
    area = parts.sum(-1) / limit
    return np.where(_defined(counts.positives) & _defined(counts.negatives), area, np.nan)


def average_precision(counts: Counts) -> FloatArray:
    """Sum over thresholds of precision times the step in recall, without interpolation."""
    recall = _rate(counts.positives)
    steps = np.diff(recall, prepend=0)
    area = (steps * _precision(counts.positives, counts.negatives)).sum(-1)
    return np.where(_defined(counts.positives), area, np.nan)


def f1_max(counts: Counts, at: FloatArray | None = None) -> FloatArray:
    """The largest F1 = 2 TP / (2 TP + FP + FN).

    Args:
        counts: Counts at all thresholds.
        at: Thresholds to consider, scores equal to one counting as positive; by default all.
    """
    total = _total(counts.positives)
    true, false = counts.positives, counts.negatives
    if at is not None:
        # Thresholds descend, so negated they ascend; index 0 means no score above.
        index = np.searchsorted(-counts.thresholds, -at, side="right")
        zero = np.zeros((*true.shape[:-1], 1))
        true = np.concatenate([zero, true], -1)[..., index]
        false = np.concatenate([zero, false], -1)[..., index]
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = 2 * true / (true + false + total[..., None])
    if scores.shape[-1] == 0:
        return np.full(total.shape, np.nan)
    return np.where(_defined(counts.positives), scores.max(-1), np.nan)


def precision_recall(counts: Counts) -> tuple[FloatArray, FloatArray]:
    """Precision and recall at each threshold, for plots."""
    return _precision(counts.positives, counts.negatives), _rate(counts.positives)


def _total(cumulative: FloatArray) -> FloatArray:
    if cumulative.shape[-1] == 0:
        return np.zeros(cumulative.shape[:-1])
    return cumulative[..., -1]


def _defined(cumulative: FloatArray) -> npt.NDArray[np.bool_]:
    return np.asarray(_total(cumulative) > 0)


def _rate(cumulative: FloatArray) -> FloatArray:
    total = _total(cumulative)[..., None]
    return cumulative / np.where(total > 0, total, 1)


def _precision(true: FloatArray, false: FloatArray) -> FloatArray:
    return true / np.where(true + false > 0, true + false, 1)


_EIGHT = np.ones((3, 3), dtype=bool)  # Diagonal neighbours are connected.


def region_weights(masks: Iterable[npt.NDArray[np.bool_]]) -> list[FloatArray]:
    """One over the size of its connected region for each pixel of the masks, 0 outside.

    A weighted sum over detected pixels is then the sum of the detected shares of the regions.
    """
    weights = []
    for mask in masks:
        labels, num_regions = ndimage.label(mask, structure=_EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=num_regions + 1).astype(np.float64)
        shares = 1 / np.maximum(sizes, 1)
        shares[0] = 0
        weights.append(shares[labels])
    return weights
