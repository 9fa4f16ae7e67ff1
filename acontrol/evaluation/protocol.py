"""The metrics of anomaly maps, by the published protocol and by a strict one.

paper   truncated ground truth; pixel F1-max over 21 thresholds; the best epoch on the
        test set by image AUROC + pixel AUROC + pixel AP + AUPRO
strict  binary ground truth; F1-max over all thresholds; the last epoch
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from acontrol.evaluation.detector import image_scores
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.metrics import (
    COARSE_THRESHOLDS,
    PRO_LIMIT,
    Counts,
    FloatArray,
    average_precision,
    count,
    f1_max,
    region_weights,
    roc_area,
)

Protocol = Literal["paper", "strict"]
PROTOCOLS: tuple[Protocol, ...] = ("paper", "strict")
# In the order of the paper's Table 3, then AUPRO.
METRICS = (
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_aupro",
)
_SELECTED_BY = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro")


@dataclass(frozen=True)
class Truth:
    """Ground truth of the test images by a protocol.

    Attributes:
        protocol: The protocol.
        pixels: (n, S, S), True on the defect.
        regions: (n, S, S), `region_weights`.
        images: (n,), True if the image has a defect.
    """

    protocol: Protocol
    pixels: npt.NDArray[np.bool_]
    regions: FloatArray
    images: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, images: ImageSet, protocol: Protocol) -> "Truth":
        """The ground truth of images."""
        pixels = (images.truncated if protocol == "paper" else images.masks).numpy()
        return cls(protocol, pixels, np.stack(region_weights(pixels)), images.anomalous)

    def subset(self, indices: Sequence[int]) -> "Truth":
        """That of some of the images."""
        index = np.asarray(indices, dtype=np.int64)
        own = (self.pixels[index], self.regions[index], self.images[index])
        return Truth(self.protocol, *own)


def score(maps: Float[Tensor, "n side side"], truth: Truth) -> dict[str, float]:
    """All metrics of anomaly maps; pixel metrics pool all test pixels."""
    by_pixel, by_region = count(maps.numpy(), truth.pixels, truth.regions)
    (by_image,) = count(image_scores(maps).numpy(), truth.images)
    values = metrics_of(by_pixel, by_region, by_image, truth.protocol)
    return {name: float(values[name]) for name in METRICS}


def metrics_of(
    by_pixel: Counts, by_region: Counts, by_image: Counts, protocol: Protocol
) -> dict[str, FloatArray]:
    """All metrics of counts, by their names in `METRICS`."""
    at = COARSE_THRESHOLDS if protocol == "paper" else None
    return {
        "pixel_auroc": roc_area(by_pixel),
        "pixel_ap": average_precision(by_pixel),
        "pixel_f1_max": f1_max(by_pixel, at),
        "image_auroc": roc_area(by_image),
        "image_ap": average_precision(by_image),
        "image_f1_max": f1_max(by_image),
        "pixel_aupro": roc_area(by_region, PRO_LIMIT),
    }


def chosen_epoch(history: Mapping[int, Mapping[str, float]], protocol: Protocol) -> int:
    """The epoch to report, given the metrics of epochs by number."""
    if protocol == "strict":
        return max(history)
    sums = {
        epoch: np.nan_to_num([metrics[name] for name in _SELECTED_BY]).sum()
        for epoch, metrics in history.items()
    }
    return max(sums, key=sums.__getitem__)
