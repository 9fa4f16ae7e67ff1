"""Percentile bootstrap of a detector's metrics over test images.

Test images are resampled with replacement, good and defective ones separately, and those of one
group, as photographs of one piece, together. Pixels are
binned by score first, finely where scores are dense, so that a thousand resamples cost a
matrix product; the reported metrics themselves are exact.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from acontrol.evaluation.detector import image_scores
from acontrol.evaluation.metrics import COARSE_THRESHOLDS, Counts, FloatArray
from acontrol.evaluation.protocol import METRICS, Protocol, Truth, metrics_of
from acontrol.seeding import derive_seed

RESAMPLES = 1000
LEVEL = 0.95
_BINS = 500  # By quantiles of all pixels, and as many of defective ones.


def resample_weights(
    anomalous: npt.NDArray[np.bool_],
    category: str,
    groups: npt.NDArray[np.int64] | None = None,
) -> FloatArray:
    """How often each test image is in each resample, (resample, image).

    Good and defective images are drawn separately, with the same draws for all sources.

    Args:
        anomalous: Which images have a defect.
        category: What the draws follow from.
        groups: Number of each image's group, which is drawn as a whole; None draws images.
    """
    rng = np.random.default_rng(derive_seed("bootstrap", category, 0))
    weights = np.zeros((RESAMPLES, len(anomalous)))
    for own in (np.flatnonzero(anomalous), np.flatnonzero(~anomalous)):
        if not len(own):
            continue
        labels = np.arange(len(own))
        if groups is not None:
            labels = np.unique(groups[own], return_inverse=True)[1]
        number = int(labels.max()) + 1
        drawn = rng.multinomial(number, np.full(number, 1 / number), RESAMPLES)
        weights[:, own] = drawn[:, labels]
    return weights


def resampled(
    maps: Float[Tensor, "n side side"], truth: Truth, weights: FloatArray
) -> FloatArray:
    """All metrics of all resamples, (metric, resample), in the order of `METRICS`."""
    pixels = maps.numpy()
    edges = _edges(pixels, truth.pixels)
    bins = len(edges) - np.searchsorted(edges, pixels, side="right")  # 0 is the highest score.
    bins = bins.reshape(len(pixels), -1)

    def binned(values: npt.NDArray[np.generic]) -> FloatArray:
        rows = [
            np.bincount(own_bins, weights=weight.ravel(), minlength=len(edges) + 1)
            for own_bins, weight in zip(bins, values, strict=True)
        ]
        return np.stack(rows)

    return resampled_rows(
        np.append(edges[::-1], -np.inf),
        (binned(truth.pixels), binned(~truth.pixels), binned(truth.regions)),
        image_scores(maps).numpy(),
        truth.images,
        weights,
        truth.protocol,
    )


def resampled_rows(
    falling: FloatArray,
    histograms: tuple[FloatArray, FloatArray, FloatArray],
    scores: npt.NDArray[np.floating],
    defective: npt.NDArray[np.bool_],
    weights: FloatArray,
    protocol: Protocol,
) -> FloatArray:
    """All metrics of all resamples, (metric, resample), in the order of `METRICS`.

    Args:
        falling: Thresholds of the bins, (bins,).
        histograms: Defective pixels, normal pixels and region weights, (image, bins) each.
        scores: Scores of the images.
        defective: Which images have a defect.
        weights: How often each image is in each resample, (resample, image).
        protocol: The protocol.
    """
    positives, negatives, regions = (np.cumsum(weights @ rows, axis=1) for rows in histograms)
    by_pixel = Counts(falling, positives, negatives)
    by_region = Counts(falling, regions, negatives)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    by_image = Counts(
        scores[order][last].astype(np.float64),
        np.cumsum((weights * defective)[:, order], axis=1)[:, last],
        np.cumsum((weights * ~defective)[:, order], axis=1)[:, last],
    )
    values = metrics_of(by_pixel, by_region, by_image, protocol)
    return np.stack([values[name] for name in METRICS])


def mean_over_trainings(categories: Sequence[Sequence[FloatArray]]) -> FloatArray:
    """Resamples of a mean over categories, with seeds resampled too.

    Draws are the same for all sources, so that differences of sources are paired.

    Args:
        categories: Values (..., resample) for each category and seed.
    """
    return mean_over_adapters([[trainings] for trainings in categories])


def mean_over_adapters(categories: Sequence[Sequence[Sequence[FloatArray]]]) -> FloatArray:
    """The same with the adapters that drew a source's images resampled as well.

    Every drawn adapter has the same draws of seeds.

    Args:
        categories: Values (..., resample) for each category, adapter and seed.
    """
    rng = np.random.default_rng(derive_seed("bootstrap-seeds", 0))
    choice = np.random.default_rng(derive_seed("bootstrap-adapters", 0))
    means = []
    for adapters in categories:
        stacked = np.stack([np.stack(trainings) for trainings in adapters])
        for axis, generator in ((1, rng), (0, choice)):
            number = stacked.shape[axis]
            drawn = generator.integers(0, number, (number, stacked.shape[-1]))
            shape = [1] * stacked.ndim
            shape[axis], shape[-1] = drawn.shape
            stacked = np.take_along_axis(stacked, drawn.reshape(shape), axis=axis)
        means.append(nan_mean(stacked, axis=(0, 1)))
    return nan_mean(np.array(means), axis=0)


def nan_mean(values: FloatArray, axis: int | tuple[int, ...]) -> FloatArray:
    """The mean without NaN, or NaN if nothing is left."""
    valid = ~np.isnan(values)
    total = np.where(valid, values, 0).sum(axis=axis)
    count = valid.sum(axis=axis)
    mean: FloatArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def interval(values: FloatArray) -> FloatArray:
    """The central 95 % of the last axis, low and high: (2, ...).

    NaN is left out; an interval is NaN if all its resamples are.
    """
    tail = (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice")
        ends: FloatArray = np.nanquantile(values, [tail, 1 - tail], axis=-1)
    return ends


def _edges(pixels: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> FloatArray:
    """Ascending edges of bins, each the lowest score of its bin."""
    shares = np.linspace(0, 1, _BINS)
    parts: list[FloatArray] = [COARSE_THRESHOLDS, np.quantile(pixels, shares)]
    if truth.any():
        parts.append(np.quantile(pixels[truth], shares))
    edges: FloatArray = np.unique(np.concatenate(parts))
    return edges
