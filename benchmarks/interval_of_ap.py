"""Does the percentile interval of image AP hold its own estimate?

Scores of defective and of as many good images are normal, some standard deviations apart.
Images are resampled as in `acontrol evaluate localization`, good and defective ones separately.

    python -m benchmarks.interval_of_ap [--data-sets 100] [--resamples 100]

Prints how far resamples lie above the estimate, and how many intervals lie wholly above it, for
one category and for the mean of 15.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from acontrol.evaluation.bootstrap import interval
from acontrol.evaluation.metrics import Counts, FloatArray, average_precision

ROUNDING = 1e-9  # Of a perfect AP, which resamples keep.


@dataclass(frozen=True)
class Excess:
    """How resamples of AP lie to their estimate.

    Attributes:
        mean: Mean of resamples minus estimate, mean over data sets.
        wholly_above: Share of data sets whose 95 % interval lies above their estimate.
    """

    mean: float
    wholly_above: float


def weighted_ap(scores: FloatArray, defective: FloatArray, weights: FloatArray) -> FloatArray:
    """AP of scores without ties, (n,), for each row of weights, (resample, n)."""
    order = np.argsort(-scores)
    weights, defective = weights[:, order], defective[order]
    counts = Counts(
        scores[order],
        np.cumsum(weights * defective, axis=1),
        np.cumsum(weights * (1 - defective), axis=1),
    )
    return average_precision(counts)


def excess(
    count: int, apart: float, categories: int, data_sets: int, resamples: int, seed: int = 0
) -> Excess:
    """Measure with ``count`` defective and ``count`` good images in each category."""
    rng = np.random.default_rng(seed)
    defective = np.repeat([1.0, 0.0], count)
    gaps, above = [], []
    for _ in range(data_sets):
        values = []  # Of each category: the estimate, then resamples.
        for _ in range(categories):
            scores = rng.normal(apart * defective)
            drawn = [rng.multinomial(count, [1 / count] * count, resamples) for _ in range(2)]
            weights = np.vstack([np.ones(2 * count), np.hstack(drawn)])
            values.append(weighted_ap(scores, defective, weights))
        estimate, *resampled = np.mean(values, axis=0)
        gaps.append(np.mean(resampled) - estimate)
        above.append(interval(np.array(resampled))[0] > estimate + ROUNDING)
    return Excess(float(np.mean(gaps)), float(np.mean(above)))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-sets", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=100)
    args = parser.parse_args()
    print("| images | apart | categories | resamples above, points | wholly above, % |")
    print("| --- | --- | --- | --- | --- |")
    for count in (10, 80):
        for apart in (-1.0, 0.0, 1.0, 2.0):
            for categories in (1, 15):
                found = excess(count, apart, categories, args.data_sets, args.resamples)
                print(
                    f"| {count} + {count} | {apart:g} | {categories} | {100 * found.mean:.1f} "
                    f"| {100 * found.wholly_above:.0f} |"
                )


if __name__ == "__main__":
    main()
