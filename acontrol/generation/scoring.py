"""How much of a mask a drawing changed, and what it did to the background."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from acontrol.data.crops import label_components
from acontrol.masks.shape import Mask
from acontrol.pipelines.compositing import Pixels

LEAST = 8.0  # Grey levels: less is never a change, however exact the autoencoder.
_ORDINARY = 0.95  # Share of the background whose change counts as the autoencoder's own.
_SSIM_SIDE = 11  # Of the window; smaller images have no SSIM.


def changed(normal: Pixels, drawn: Pixels, mask: Mask) -> Mask:
    """Where a drawing differs from its normal image by more than the autoencoder's own error.

    The drawing must not be composited yet: any difference outside the mask is then the
    autoencoder's error, and its 95 % quantile is the least change that counts inside.

    Args:
        normal: (H, W, 3).
        drawn: (H, W, 3) as decoded.
        mask: (H, W), where to draw.

    Returns:
        (H, W), True only inside the mask.
    """
    difference = np.abs(normal.astype(np.float64) - drawn).max(axis=2)
    # Over three pixels: the autoencoder moves fine grain.
    smooth = np.asarray(ndimage.gaussian_filter(difference, 1.0))
    outside = smooth[~mask]
    error = float(np.quantile(outside, _ORDINARY)) if outside.size else 0.0
    return np.asarray((smooth > max(LEAST, error)) & mask)


def refined(change: Mask, mask: Mask) -> Mask:
    """The changed part of a mask, without specks and pinholes.

    Empty if nothing but specks changed.
    """
    filled = ndimage.binary_closing(change, iterations=2) & mask
    labels, areas = label_components(filled)
    if len(areas) == 0:
        return np.asarray(filled)
    large = np.flatnonzero(areas >= max(2.0, 0.05 * areas.max())) + 1
    return np.asarray(np.isin(labels, large))


@dataclass(frozen=True)
class Fidelity:
    """How similar the background is.

    Attributes:
        psnr: In dB; None if all pixels are equal.
        ssim: In [-1, 1]; None for images smaller than SSIM's window.
    """

    psnr: float | None
    ssim: float | None


def fidelity(normal: Pixels, result: Pixels, mask: Mask) -> Fidelity | None:
    """Compare two images outside a mask; None if the mask covers the whole image.

    SSIM is the mean over the windows centred outside the mask.
    """
    outside = ~mask
    if not outside.any():
        return None
    error = ((normal[outside].astype(np.float64) - result[outside]) ** 2).mean()
    psnr = 10 * math.log10(255**2 / error) if error else None
    if min(mask.shape) < _SSIM_SIDE:
        return Fidelity(psnr, None)
    first, second = (
        torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        for image in (result, normal)
    )
    _, full = structural_similarity_index_measure(
        first, second, data_range=255.0, return_full_image=True
    )
    values = full[0].mean(dim=0).numpy()[outside]
    return Fidelity(psnr, float(values.astype(np.float64).mean()))
