"""Image AP is biased upwards under resampling, as docs/evaluation.md says."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from benchmarks.interval_of_ap import excess, weighted_ap


def test_weighted_ap_is_scikit_learns() -> None:
    rng = np.random.default_rng(4)
    defective = np.repeat([1.0, 0.0], [6, 9])
    scores = rng.normal(defective)
    weights = rng.multinomial(15, [1 / 15] * 15, 20) + np.eye(15)[:1]
    expected = [average_precision_score(defective, scores, sample_weight=w) for w in weights]
    assert weighted_ap(scores, defective, weights) == pytest.approx(expected, abs=1e-12)


def test_resamples_lie_above_the_estimate() -> None:
    """By less with more images; over many categories only the chance part averages out."""
    few, many = (excess(count, 1.0, 1, 100, 100) for count in (10, 80))
    assert (round(100 * few.mean, 1), round(100 * many.mean, 1)) == (1.5, 0.4)
    assert few.wholly_above == many.wholly_above == 0
    fifteen = excess(10, -1.0, 15, 30, 100)
    assert fifteen.mean > 0.02
    assert fifteen.wholly_above > 0.5
