"""What a drawing really changed: mask-fill, background fidelity, and the refined mask."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from acontrol.masks.shape import Mask

LEAST = 8.0  # Grey levels: less is no change, however exact the autoencoder.
_ORDINARY = 0.95  # Share of the background whose change counts as the autoencoder's own.
_SSIM_SIDE = 11  # Of its window; smaller images have no SSIM.

Pixels = npt.NDArray[np.uint8]


def changed(normal: Pixels, drawn: Pixels, mask: Mask) -> Mask:
    """Where a drawing differs from its normal image by more than the autoencoder's own error.

    The drawing must not have been put back into the normal image yet: outside the mask
    nothing was drawn, so what differs there is the autoencoder's error, and its 95 % quantile
    is the least change that counts inside.

    Args:
        normal: (H, W, 3).
        drawn: (H, W, 3) as decoded.
        mask: (H, W), what was to be drawn.

    Returns:
        (H, W), True only inside the mask.
    """
    difference = np.abs(normal.astype(np.float64) - drawn).max(axis=2)
    # Over three pixels: fine grain comes out of the autoencoder elsewhere than it was.
    smooth = np.asarray(ndimage.gaussian_filter(difference, 1.0))
    outside = smooth[~mask]
    own = float(np.quantile(outside, _ORDINARY)) if outside.size else 0.0
    return np.asarray((smooth > max(LEAST, own)) & mask)


def refined(change: Mask, mask: Mask) -> Mask:
    """The mask of what changed, without specks and pinholes; within ``mask``.

    Empty if nothing but specks changed.
    """
    filled = ndimage.binary_closing(change, iterations=2) & mask
    labels, count = ndimage.label(filled, np.ones((3, 3)))
    if count == 0:
        return np.asarray(filled)
    areas = np.bincount(labels.ravel())[1:]
    large = np.flatnonzero(areas >= max(2.0, 0.05 * areas.max())) + 1
    return np.asarray(np.isin(labels, large))


@dataclass(frozen=True)
class Fidelity:
    """How well the background was kept.

    Attributes:
        psnr: In dB; None where every pixel is the same.
        ssim: In [-1, 1]; None where the image is smaller than SSIM's window.
    """

    psnr: float | None
    ssim: float | None


def fidelity(normal: Pixels, result: Pixels, mask: Mask) -> Fidelity | None:
    """Compare two images outside a mask; None where the mask is the whole image.

    SSIM is averaged over the windows whose centre lies outside the mask.
    """
    outside = ~mask
    if not outside.any():
        return None
    error = ((normal[outside].astype(np.float64) - result[outside]) ** 2).mean()
    psnr = 10 * math.log10(255**2 / error) if error else None
    if min(mask.shape) < _SSIM_SIDE:
        return Fidelity(psnr, None)
    first, second = (
        torch.from_numpy(one.copy()).permute(2, 0, 1)[None].float() for one in (result, normal)
    )
    _, full = structural_similarity_index_measure(
        first, second, data_range=255.0, return_full_image=True
    )
    values = full[0].mean(dim=0).numpy()[outside]
    return Fidelity(psnr, float(values.astype(np.float64).mean()))
