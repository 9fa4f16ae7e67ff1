"""How far a detector's metrics would move with other test images: the percentile bootstrap.

Test images are drawn again with replacement, good and defective ones apart. Pixels are binned
by score first, finely where scores are, so that a thousand resamples cost a matrix product;
the reported metrics themselves are exact.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from acontrol.evaluation.detector import image_scores
from acontrol.evaluation.metrics import COARSE_THRESHOLDS, Counts, FloatArray
from acontrol.evaluation.protocol import METRICS, Truth, metrics_of
from acontrol.seeding import derive_seed

RESAMPLES = 1000
LEVEL = 0.95
_BINS = 500  # By quantiles of all pixels, and as many by those of defective ones.


def resample_weights(
    anomalous: npt.NDArray[np.bool_], category: str, seed: int = 0
) -> FloatArray:
    """How often each test image is in each resample, (resample, image).

    Args:
        anomalous: Which images have a defect; good and defective ones are drawn apart.
        category: Each draws for itself, the same for every source.
        seed: Of the draws.
    """
    rng = np.random.default_rng(derive_seed("bootstrap", category, seed))
    weights = np.zeros((RESAMPLES, len(anomalous)))
    for group in (np.flatnonzero(anomalous), np.flatnonzero(~anomalous)):
        if len(group):
            even = np.full(len(group), 1 / len(group))
            weights[:, group] = rng.multinomial(len(group), even, RESAMPLES)
    return weights


def resampled(
    maps: Float[Tensor, "n side side"], truth: Truth, weights: FloatArray
) -> FloatArray:
    """Every metric in every resample, (metric, resample), in the order of `METRICS`."""
    pixels = maps.numpy()
    edges = _edges(pixels, truth.pixels)
    bins = len(edges) - np.searchsorted(edges, pixels, side="right")  # 0 is the highest score.
    bins = bins.reshape(len(pixels), -1)

    def binned(values: npt.NDArray[np.generic]) -> FloatArray:
        rows = [
            np.bincount(where, weights=own.ravel(), minlength=len(edges) + 1)
            for where, own in zip(bins, values, strict=True)
        ]
        return np.cumsum(weights @ np.stack(rows), axis=1)

    falling = np.append(edges[::-1], -np.inf)
    positives, negatives = binned(truth.pixels), binned(~truth.pixels)
    by_pixel = Counts(falling, positives, negatives)
    by_region = Counts(falling, binned(truth.regions), negatives)
    scores = image_scores(maps).numpy()
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = truth.images
    by_image = Counts(
        scores[order][last].astype(np.float64),
        np.cumsum((weights * found)[:, order], axis=1)[:, last],
        np.cumsum((weights * ~found)[:, order], axis=1)[:, last],
    )
    values = metrics_of(by_pixel, by_region, by_image, truth.protocol)
    return np.stack([values[name] for name in METRICS])


def mean_over_trainings(
    categories: Sequence[Sequence[FloatArray]], seed: int = 0
) -> FloatArray:
    """Resamples of a mean over categories, with seeds drawn again too.

    Args:
        categories: For each category, for each seed, values (..., resample). The same
            resample of the same category has the same test images in every source, so that
            differences of sources are paired.
        seed: Of the draw of seeds, the same for every source.

    Returns:
        (..., resample).
    """
    rng = np.random.default_rng(derive_seed("bootstrap-seeds", seed))
    means = []
    for trainings in categories:
        stacked = np.stack(trainings)
        drawn = rng.integers(0, len(trainings), (len(trainings), stacked.shape[-1]))
        places = drawn.reshape(len(trainings), *(1,) * (stacked.ndim - 2), -1)
        means.append(mean_of_known(np.take_along_axis(stacked, places, axis=0), axis=0))
    return mean_of_known(np.array(means), axis=0)


def mean_of_known(values: FloatArray, axis: int | tuple[int, ...]) -> FloatArray:
    """The mean of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=axis)
    count = known.sum(axis=axis)
    mean: FloatArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def interval(values: FloatArray) -> FloatArray:
    """The central 95 % of the last axis: (2, ...), low and high.

    Resamples in which a metric is not defined are left out; NaN where all are.
    """
    tail = (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice")
        found: FloatArray = np.nanquantile(values, [tail, 1 - tail], axis=-1)
    return found


def _edges(pixels: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> FloatArray:
    """Rising edges of bins: a score at an edge lies above it."""
    shares = np.linspace(0, 1, _BINS)
    parts: list[FloatArray] = [COARSE_THRESHOLDS, np.quantile(pixels, shares)]
    if truth.any():
        parts.append(np.quantile(pixels[truth], shares))
    edges: FloatArray = np.unique(np.concatenate(parts))
    return edges
