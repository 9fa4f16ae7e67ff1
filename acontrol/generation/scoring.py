"""How much of a mask a drawing changed, and what it did to the background.

Images are worked on in strips of rows, so that memory does not grow with a photograph.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from acontrol.data.crops import bounds, grown, label_components
from acontrol.masks.shape import Mask
from acontrol.pipelines.compositing import Pixels

LEAST = 8.0  # Grey levels: less is never a change, however exact the autoencoder.
_ORDINARY = 0.95  # Share of the background whose change counts as the autoencoder's own.
_SSIM_SIDE = 11  # Of the window; smaller images have no SSIM.
_STRIP = 2**20  # Pixels worked on at once.
_SAMPLED = 2**23  # Pixels that give the autoencoder's error.
_REACH = 4  # Rows that a pixel's smoothed value depends on, each way.


def changed(normal: Pixels, drawn: Pixels, mask: Mask) -> Mask:
    """Where a drawing differs from its normal image by more than the autoencoder's own error.

    Both are smoothed by a pixel first, so that the same surface with other grain is no change.
    The drawing must not be composited yet: any difference outside the mask is then the
    autoencoder's error, and its 95 % quantile is the least change that counts inside.

    Args:
        normal: (H, W, 3).
        drawn: (H, W, 3) as decoded.
        mask: (H, W), where to draw.

    Returns:
        (H, W), True only inside the mask.
    """
    apart = math.ceil(mask.size / _SAMPLED)  # Rows: of a large photograph some are enough.
    inside, outside = [], []
    for own, read in _strips(mask.shape, _REACH):
        difference = drawn[read].astype(np.float32) - normal[read]
        # With its sign, so that redrawn grain cancels itself and a defect does not. No wider:
        # a scratch of one pixel would cancel as well.
        smooth = np.abs(ndimage.gaussian_filter(difference, (1.0, 1.0, 0))).max(axis=2)
        smooth = smooth[own.start - read.start : own.stop - read.start]
        inside.append(smooth[mask[own]])
        outside.append(smooth[::apart][~mask[own][::apart]])
    background = np.concatenate(outside)
    error = float(np.quantile(background, _ORDINARY)) if background.size else 0.0
    change = np.zeros_like(mask)
    change[mask] = np.concatenate(inside) > max(LEAST, error)
    return change


def refined(change: Mask, mask: Mask) -> Mask:
    """The changed part of a mask, without specks and pinholes.

    Empty if nothing but specks changed.
    """
    tight = np.zeros_like(mask)
    box = grown(bounds(mask), 2, mask.shape)
    filled = ndimage.binary_closing(change[box], iterations=2) & mask[box]
    labels, areas = label_components(filled)
    if len(areas):
        large = np.flatnonzero(areas >= max(2.0, 0.05 * areas.max())) + 1
        tight[box] = np.isin(labels, large)
    return tight


def psnr(normal: Pixels, result: Pixels, mask: Mask) -> float | None:
    """Peak signal-to-noise ratio outside a mask, in dB.

    None if all pixels are equal there, or there is none.
    """
    squares = 0
    for own, _ in _strips(mask.shape, 0):
        difference = _difference(normal[own], result[own]).astype(np.int64)
        squares += int((difference[~mask[own]] ** 2).sum())
    if not squares:
        return None
    return 10 * math.log10(255**2 * 3 * int((~mask).sum()) / squares)


def ssim(normal: Pixels, result: Pixels, mask: Mask) -> float | None:
    """Structural similarity, the mean over the windows centred outside a mask, in [-1, 1].

    None for images smaller than its window, or without an outside.
    """
    outside = int((~mask).sum())
    if min(mask.shape) < _SSIM_SIDE or not outside:
        return None
    differs = (normal != result).any(axis=2)
    if not differs.any():
        return 1.0
    # Windows that see no difference are exactly 1.
    reach = _SSIM_SIDE // 2
    rows, columns = grown(bounds(differs), reach, mask.shape)
    total = float(outside - int((~mask[rows, columns]).sum()))
    left, right = max(0, columns.start - reach), columns.stop + reach
    for own, read in _strips((rows.stop, right - left), reach, rows.start, mask.shape[0]):
        first, second = (
            torch.from_numpy(image[read, left:right].copy()).permute(2, 0, 1)[None].float()
            for image in (result, normal)
        )
        _, full = structural_similarity_index_measure(
            first, second, data_range=255.0, return_full_image=True
        )
        values = full[0].mean(dim=0).numpy()[own.start - read.start :, columns.start - left :]
        values = values[: own.stop - own.start, : columns.stop - columns.start]
        total += float(values[~mask[own, columns]].sum(dtype=np.float64))
    return total / outside


def _difference(first: Pixels, second: Pixels) -> npt.NDArray[np.int16]:
    return np.abs(first.astype(np.int16) - second)


def _strips(
    shape: tuple[int, ...], reach: int, first: int = 0, height: int | None = None
) -> Iterator[tuple[slice, slice]]:
    """Rows from ``first`` to the shape's height, in strips; each with the rows that it reads.

    Args:
        shape: (last row + 1, W).
        reach: Rows read above and below a strip, where the image has them.
        first: First row.
        height: The image's, if it goes on below the shape.
    """
    last = shape[0]
    step = max(_STRIP // shape[1], 4 * reach, _SSIM_SIDE)
    for start in range(first, last, step):
        stop = min(start + step, last)
        yield (
            slice(start, stop),
            slice(max(0, start - reach), min(height or last, stop + reach)),
        )
