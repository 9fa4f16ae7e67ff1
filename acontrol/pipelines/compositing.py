"""Composite a drawing into its normal image: only the mask changes, in the image's own colours.

The one way for every command. Whatever the blend, each pixel outside the mask is the normal
image's own, so that a label of "normal" is exact.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from acontrol.data.crops import bounds, grown

Pixels = npt.NDArray[np.uint8]
Blend = Literal["feather", "poisson", "hard"]
FEATHER = 2  # In the model's pixels.
_LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601, as Pillow's mode L.


def feather_px(side: int, resolution: int) -> int:
    """Width of the fade in the image's pixels, for a drawing ``side`` pixels long."""
    return max(1, round(FEATHER * side / resolution))


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
            mask's edge inwards; "poisson" shifts their colours smoothly to meet the normal
            image's at the edge.
        width: Of the fade, in pixels.

    Returns:
        (H, W, 3), equal to ``normal`` outside the mask.
    """
    result = normal.copy()
    # Nothing farther from the mask than the fade has a part in it.
    box = grown(bounds(mask), width + 1, mask.shape)
    result[box] = _pasted(normal[box], drawn[box], mask[box], blend, width)
    return result


def _pasted(
    normal: Pixels, drawn: Pixels, mask: npt.NDArray[np.bool_], blend: Blend, width: int
) -> Pixels:
    if blend == "poisson":
        return _poisson(normal, drawn, mask)
    if blend == "hard" or mask.all():
        return np.where(mask[..., None], drawn, normal)
    depth = np.asarray(ndimage.distance_transform_edt(mask))
    # A part thinner than the fade is drawn in full along its middle.
    nearby = ndimage.maximum_filter(depth, 2 * width + 1)
    alpha = np.clip(depth / np.clip(nearby, 1, width + 1), 0, 1)[..., None]
    mixed = np.rint(alpha * drawn + (1 - alpha) * normal).astype(np.uint8)
    return np.where(mask[..., None], mixed, normal)


def _poisson(normal: Pixels, drawn: Pixels, mask: npt.NDArray[np.bool_]) -> Pixels:
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
