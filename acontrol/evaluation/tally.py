"""Metrics of anomaly maps that come one by one, however many pixels there are.

Logits are counted by levels, finely enough that metrics agree with exact ones to 1e-4; for the
bootstrap each image keeps a coarser histogram. So memory depends on the number of images, not
on their size.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from torch import Tensor

from acontrol.evaluation.bootstrap import resampled_rows
from acontrol.evaluation.detector import image_scores
from acontrol.evaluation.metrics import Counts, FloatArray, count, region_weights
from acontrol.evaluation.protocol import METRICS, metrics_of

_LIMIT = 16.0  # Of logits: a probability of 1e-7.
_LEVELS = 2**16
_COARSE = 2**12  # Of an image's own histogram.


class Tally:
    """Counts of the pixels of test images by score."""

    def __init__(self, side: int):
        """Start empty; ``side`` is that of tiles, which an image's score is relative to."""
        self._side = side
        self._fine: dict[str, FloatArray] = {}
        self._coarse: list[FloatArray] = []
        self._scores: list[float] = []
        self._defects: list[str] = []

    def add(
        self,
        logits: Float[Tensor, "height width"],
        mask: Bool[Tensor, "height width"],
        defect: str,
    ) -> None:
        """Count an image."""
        truth = mask.numpy()
        (regions,) = region_weights([truth])
        share = (logits.numpy().astype(np.float64) + _LIMIT) / (2 * _LIMIT)
        levels = (share * (_LEVELS - 1)).round().clip(0, _LEVELS - 1).astype(np.int64).ravel()
        fine = np.stack(
            [
                np.bincount(levels, weights=weights.ravel(), minlength=_LEVELS)
                for weights in (truth, ~truth, regions)
            ]
        )
        self._fine[defect] = self._fine.get(defect, np.zeros_like(fine)) + fine
        coarse = fine.reshape(3, _COARSE, -1).sum(axis=-1)[:, ::-1]
        self._coarse.append(coarse)  # The highest score first, as in `Counts`.
        self._scores.append(float(image_scores(logits.sigmoid()[None], self._side)[0]))
        self._defects.append(defect)

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """Which images have a defect."""
        return np.array([defect != "good" for defect in self._defects], dtype=bool)

    def pixels(self, defects: Sequence[str]) -> tuple[Counts, Counts]:
        """Counts by pixel and by region of these defects' images, "good" among them."""
        positives, negatives, regions = (
            np.cumsum(row[::-1])
            for row in np.sum([self._fine[name] for name in defects], axis=0)
        )
        falling = np.linspace(1, 0, _LEVELS)
        return Counts(falling, positives, negatives), Counts(falling, regions, negatives)

    def score(self, images: Sequence[int]) -> dict[str, float]:
        """All metrics of these images: whole groups of a defect."""
        by_pixel, by_region = self.pixels(self._groups(images))
        scores = np.array(self._scores)[list(images)]
        (by_image,) = count(scores, self.anomalous[list(images)])
        values = metrics_of(by_pixel, by_region, by_image, "strict")
        return {name: float(values[name]) for name in METRICS}

    def resampled(self, images: Sequence[int], weights: FloatArray) -> FloatArray:
        """All metrics of resamples of these images, (metric, resample)."""
        index = list(images)
        positives, negatives, regions = np.stack([self._coarse[n] for n in index], axis=1)
        return resampled_rows(
            np.linspace(1, 0, _COARSE),
            (positives, negatives, regions),
            np.array(self._scores)[index],
            self.anomalous[index],
            weights,
            "strict",
        )

    def _groups(self, images: Sequence[int]) -> list[str]:
        return [*dict.fromkeys(self._defects[n] for n in images)]
