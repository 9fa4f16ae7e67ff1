"""Connected regions of masks, for the per-region overlap (PRO)."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from acontrol.evaluation.curves import FloatArray

_EIGHT = np.ones((3, 3), dtype=bool)  # Diagonal neighbours belong together.


def region_weights(masks: Iterable[npt.NDArray[np.bool_]]) -> list[FloatArray]:
    """One over the size of its connected region for each pixel of a mask, 0 outside.

    A weighted sum over detected pixels is then the sum over regions of the share detected.

    Args:
        masks: (H, W) each.
    """
    weights = []
    for mask in masks:
        labels, found = ndimage.label(mask, structure=_EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=found + 1).astype(np.float64)
        shares = 1 / np.maximum(sizes, 1)
        shares[0] = 0
        weights.append(shares[labels])
    return weights
