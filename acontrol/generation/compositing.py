"""Composite a drawing into its normal image, so that only the defect changes."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve
from torchmetrics.functional.image import structural_similarity_index_measure

from acontrol.masks.shape import Mask, label_components

Pixels = npt.NDArray[np.uint8]
FEATHER = 2  # In the model's pixels.


def feather_px(side: int, resolution: int) -> int:
    """Width of the fade in the image's pixels, for a drawing ``side`` pixels long."""
    return max(1, round(FEATHER * side / resolution))


def paste(
    normal: Pixels,
    drawn: Pixels,
    mask: Mask,
    blend: Literal["feather", "poisson", "hard"],
    width: int,
) -> Pixels:
    """Composite a drawing's defect onto the normal image.

    Args:
        normal: (H, W, 3), not changed.
        drawn: (H, W, 3).
        mask: (H, W), not empty: the pixels to take from ``drawn``.
        blend: "hard" copies them; "feather" also fades out over ``width`` pixels around them;
            "poisson" shifts their colours smoothly to meet the normal image's at the edge.
        width: Of the fade, in pixels.

    Returns:
        (H, W, 3), equal to ``normal`` outside the mask and its fade.
    """
    if blend == "poisson":
        return _poisson(normal, drawn, mask)
    if blend == "hard":
        return np.where(mask[..., None], drawn, normal)
    # 1 inside, 0 from a distance of width + 1 on: exactly the normal image's there.
    distance = np.asarray(ndimage.distance_transform_edt(~mask))
    alpha = np.clip(1 - distance / (width + 1), 0, 1)[..., None]
    mixed = np.rint(alpha * drawn + (1 - alpha) * normal).astype(np.uint8)
    return np.where(alpha > 0, mixed, normal)


def _poisson(normal: Pixels, drawn: Pixels, mask: Mask) -> Pixels:
    """Keep the drawing's gradients, with the normal image's values at the mask's edge.

    The added correction is harmonic inside the mask and given around it (Perez et al. 2003).
    At the image's own border there is no condition.
    """
    index = np.full(mask.shape, -1)
    rows, columns = np.nonzero(mask)
    index[rows, columns] = np.arange(len(rows))
    correction = normal.astype(np.float64) - drawn
    diagonal = np.zeros(len(rows))
    right = np.zeros((len(rows), 3))
    entries: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for down, across in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        y, x = rows + down, columns + across
        in_image = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
        diagonal += in_image
        own = np.flatnonzero(in_image)
        neighbour = index[y[own], x[own]]
        inner = neighbour >= 0
        entries.append((own[inner], neighbour[inner]))
        outer = own[~inner]
        right[outer] += correction[y[outer], x[outer]]
    if not right.any():  # No edge to meet, or it is met already.
        return np.where(mask[..., None], drawn, normal)
    row, column = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    laplace = sparse.diags(diagonal) - sparse.csr_matrix(
        (np.ones(len(row)), (row, column)), shape=(len(rows), len(rows))
    )
    added = spsolve(laplace.tocsc(), right)
    result = normal.copy()
    shifted = drawn[rows, columns] + np.asarray(added).reshape(-1, 3)
    result[rows, columns] = np.clip(np.rint(shifted), 0, 255).astype(np.uint8)
    return result


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
