"""Composite a drawing into its normal image: only the mask changes, in the image's own colours.

The one way for every command. Whatever the blend, each pixel outside the mask is the normal
image's own, so that a label of "normal" is exact.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from acontrol.data.crops import Crop, bounds, grown

Pixels = npt.NDArray[np.uint8]
Blend = Literal["feather", "poisson", "hard"]
FEATHER = 2  # In the model's pixels.
_DIRECT = 2**18  # Pixels that Poisson blending solves for directly, in half a GB.
_CYCLES = 6  # Of multigrid, on each grid of a larger mask.
_SWEEPS = 2  # Of relaxation on a grid, before and after the coarser one.
_DAMPING = 0.8
_COARSEST = 2**12  # Pixels of the coarsest grid, solved directly.
_STRIP = 2**20  # Pixels that are faded at once.
_LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601, as Pillow's mode L.


def feather_px(side: int, resolution: int) -> int:
    """Width of the fade in the image's pixels, for a drawing ``side`` pixels long."""
    return max(1, round(FEATHER * side / resolution))


def composited(
    drawn: Image.Image, normal: Image.Image, mask: Image.Image, resolution: int
) -> Image.Image:
    """A drawing's defect on its normal image, faded in at the mask's edge; grey on grey.

    Args:
        drawn: Of the normal image's size.
        normal: Of any mode.
        mask: 1-bit, where to draw.
        resolution: The model's.
    """
    pixels, result = np.asarray(normal.convert("RGB")), np.asarray(drawn)
    if not saturation(pixels).any():
        result = limit_saturation(result, 0)
    width = feather_px(max(normal.size), resolution)
    return Image.fromarray(paste(pixels, result, np.asarray(mask), "feather", width))


def saturation(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """(H, W): between a pixel's largest and smallest channel; 0 is grey."""
    return np.asarray(pixels.max(axis=2) - pixels.min(axis=2))


def limit_saturation(pixels: Pixels, limit: float) -> Pixels:
    """Take colour out of pixels whose saturation is over the limit; their grey level stays."""
    own = saturation(pixels)
    over = own > limit
    coloured = pixels[over]
    kept = (limit / own[over])[:, None]
    luma = (coloured @ _LUMA)[:, None]
    limited = pixels.copy()
    limited[over] = np.rint(luma + kept * (coloured - luma)).astype(np.uint8)
    return limited


def paste(
    normal: Pixels,
    drawn: Pixels,
    mask: npt.NDArray[np.bool_],
    blend: Blend,
    width: int,
) -> Pixels:
    """Composite a drawing's defect onto the normal image.

    Args:
        normal: (H, W, 3), not changed.
        drawn: (H, W, 3).
        mask: (H, W), not empty: the pixels to take from ``drawn``.
        blend: "hard" copies them; "feather" fades them in over ``width`` pixels from the
            mask's edge inwards, or a quarter of a thinner part's thickness; "poisson" shifts
            their colours smoothly to meet the normal image's at the edge.
        width: Of the fade, in pixels.

    Returns:
        (H, W, 3), equal to ``normal`` outside the mask.
    """
    result = normal.copy()
    # Nothing farther from the mask than the fade has a part in it.
    box = grown(bounds(mask), width + 1, mask.shape)
    result[box] = _pasted(normal[box], drawn[box], mask[box], blend, width)
    return result


def paste_part(
    canvas: Pixels,
    normal: Pixels,
    drawn: Pixels,
    crop: Crop,
    before: npt.NDArray[np.float64],
    width: int,
) -> Pixels:
    """Composite a part of a long defect: faded in at the defect's edge, not at the part's own.

    Where parts overlap, the last of them leaves the mean of all by their weights, so that parts
    of unlike brightness have no seam.

    Args:
        canvas: (H, W, 3), what the crop's box shows: the normal image with the parts so far.
        normal: (H, W, 3), the same of the normal image.
        drawn: (H, W, 3).
        crop: With a ``part``.
        before: (H, W), the sum of the earlier parts' weights.
        width: Of the fade at the defect's edge, in pixels.

    Returns:
        (H, W, 3), equal to ``canvas`` outside the crop's mask.
    """
    own = paste(normal, drawn, crop.seen, "feather", width)
    mask, weight = crop.mask, crop.weight
    share = np.divide(weight, weight + before, where=mask, out=np.zeros_like(weight))
    mixed = canvas + share[..., None] * (own.astype(float) - canvas)
    return np.where(mask[..., None], np.rint(mixed), canvas).astype(np.uint8)


def _pasted(
    normal: Pixels, drawn: Pixels, mask: npt.NDArray[np.bool_], blend: Blend, width: int
) -> Pixels:
    if mask.all():
        return drawn.copy()
    if blend == "poisson":
        return _poisson(normal, drawn, mask)
    if blend == "hard":
        return np.where(mask[..., None], drawn, normal)
    result = normal.copy()
    height, across = mask.shape
    margin = 4 * (width + 1)  # No farther does a pixel's alpha depend on the mask.
    step = max(margin // 2, _STRIP // across)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        first, last = max(0, top - margin), min(height, bottom + margin)
        own = slice(top - first, bottom - first)
        alpha = _alpha(mask[first:last], width)[own, :, None]
        mixed = alpha * drawn[top:bottom] + (1 - alpha) * normal[top:bottom]
        inside = mask[top:bottom]
        result[top:bottom][inside] = np.rint(mixed[inside]).astype(np.uint8)
    return result


def _alpha(mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.float64]:
    """(H, W): the share of the drawing at each pixel, from 0 to 1."""
    if mask.all():
        return np.ones(mask.shape)
    depth = np.asarray(ndimage.distance_transform_edt(mask))
    # Over a quarter of the thickness at most: up to its middle, a crack would become faint.
    return np.clip(depth / np.clip(_half_thickness(mask, 2 * (width + 1)) / 2, 1, None), 0, 1)


def _half_thickness(mask: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.int64]:
    """(H, W): at each pixel half the mask's thickness, in pixels, up to ``most``; 0 outside.

    It is half the side, rounded up, of the largest square that lies in the mask and covers the
    pixel: a crack that leaves a stain has its own. Rounded down to a power of the root of 2,
    since each value costs a filter.
    """
    depth = ndimage.distance_transform_cdt(mask, "chessboard")
    half = np.zeros(mask.shape, np.int64)
    levels = {min(most, round(2 ** (step / 2))) for step in range(2 * most.bit_length() + 1)}
    for level in sorted(levels):
        middles = (depth >= level).astype(np.uint8)
        half[ndimage.maximum_filter(middles, 2 * level - 1) > 0] = level
    return half


def _poisson(normal: Pixels, drawn: Pixels, mask: npt.NDArray[np.bool_]) -> Pixels:
    """Keep the drawing's gradients, with the normal image's values at the mask's edge.

    The added correction is harmonic inside the mask and given around it (Perez et al. 2003).
    At the image's own border there is no condition.
    """
    correction = normal.astype(np.int16) - drawn
    result = normal.copy()
    if np.count_nonzero(mask) <= _DIRECT:
        result[mask] = _levels(drawn[mask] + _solved(correction, mask))
        return result
    for channel in range(3):
        added = _filled(correction[..., channel].astype(np.float32), mask)[mask]
        result[..., channel][mask] = _levels(drawn[..., channel][mask] + added)
    return result


def _levels(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _filled(
    values: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """``_solved`` for a large mask, by multigrid: a direct solution takes 2 KB a pixel.

    Args:
        values: (H, W), one channel.
        mask: (H, W), not of the whole image.

    Returns:
        (H, W): the values, with the solution inside the mask.
    """
    if np.count_nonzero(mask) <= _COARSEST:
        values = values.copy()
        values[mask] = _solved(values[..., None], mask)[:, 0]
        return values
    known = _even(~mask)
    count = _block_sums(known.astype(np.float32))
    mean = np.asarray(_block_sums(_even(values) * known) / np.maximum(count, 1), np.float32)
    values = np.where(mask, _enlarged(_filled(mean, count == 0), mask), values)
    for _ in range(_CYCLES):
        _cycle(values, np.zeros_like(values), mask)
    return values


def _cycle(
    values: npt.NDArray[np.float32],
    source: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
) -> None:
    """Improve a solution of Poisson's equation in place: one V-cycle.

    What relaxation leaves of the error is smooth, so a grid of half the resolution finds it.
    """
    if np.count_nonzero(mask) <= _COARSEST:
        values[mask] = _solved(values[..., None], mask, source[mask][:, None])[:, 0]
        return
    _relax(values, source, mask)
    coarse_mask = _block_sums(_even(~mask).astype(np.float32)) == 0
    residual = _block_sums(_even(np.where(mask, source + _laplacian(values), 0)))
    coarse = np.zeros_like(residual)
    _cycle(coarse, residual, coarse_mask)
    np.add(values, _enlarged(coarse, mask), out=values, where=mask)
    _relax(values, source, mask)


def _relax(
    values: npt.NDArray[np.float32],
    source: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
) -> None:
    for _ in range(_SWEEPS):
        step = _laplacian(values)
        step += source
        step *= _DAMPING / 4
        np.add(values, step, out=values, where=mask)


def _laplacian(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Over the four neighbours, without a condition at the border."""
    around = np.pad(values, 1, mode="edge")
    total = around[:-2, 1:-1] + around[2:, 1:-1]
    total += around[1:-1, :-2]
    total += around[1:-1, 2:]
    total -= 4 * values
    return np.asarray(total)


def _even(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """With a row and a column of zeros where a length is odd."""
    height, width = values.shape
    return np.pad(values, ((0, height % 2), (0, width % 2)))


def _enlarged(
    values: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Twice as large, cut to the mask's size."""
    height, width = mask.shape
    return values.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]


def _block_sums(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Over squares of two by two."""
    rows = values[::2] + values[1::2]
    return rows[:, ::2] + rows[:, 1::2]


def _solved(
    values: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    source: npt.NDArray[Any] | float = 0,
) -> npt.NDArray[np.float64]:
    """Solve Poisson's equation inside the mask, with the values around it.

    Args:
        values: (H, W, channel).
        mask: (H, W).
        source: (pixel, channel) for the pixels inside.

    Returns:
        (pixel, channel) for the pixels inside.
    """
    index = np.full(mask.shape, -1, np.int32)
    rows, columns = np.nonzero(mask)
    index[rows, columns] = np.arange(len(rows))
    diagonal = np.zeros(len(rows))
    right = np.zeros((len(rows), values.shape[2])) + source
    entries: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]] = []
    for down, across in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        y, x = rows + down, columns + across
        in_image = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
        diagonal += in_image
        own = np.flatnonzero(in_image)
        neighbour = index[y[own], x[own]]
        inner = neighbour >= 0
        entries.append((own[inner], neighbour[inner]))
        outer = own[~inner]
        right[outer] += values[y[outer], x[outer]]
    if not right.any():  # The edge is met already.
        return right
    row, column = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    laplace = sparse.diags(diagonal) - sparse.csr_matrix(
        (np.ones(len(row)), (row, column)), shape=(len(rows), len(rows))
    )
    solution = spsolve(laplace.tocsc(), right)
    return np.asarray(solution).reshape(right.shape)
