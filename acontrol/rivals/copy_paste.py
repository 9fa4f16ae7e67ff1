"""Copy-paste: the reference's real defect, cut out by its mask and put into the new place.

The bar for anything that is learnt: these are real pixels. What it cannot do is the light and
grain of the new place, and a shape that was not photographed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from acontrol.data.crops import bounds, grown
from acontrol.masks.shape import Mask
from acontrol.pipelines.compositing import Pixels
from acontrol.rivals.task import Drawing, PixelMethod, Task
from acontrol.rivals.warp import fits, warped

_GAIN = 2.0  # Most that a channel is scaled by.
_RING = 0.25  # Width of the surround that is compared, in square roots of the mask's area.


class CopyPaste(PixelMethod):
    """Pastes references, in the colours of the new place."""

    name = "copy-paste"

    @property
    def state(self) -> Mapping[str, Any]:
        """Only the version of this code."""
        return {"version": 1}

    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Paste each task's reference."""
        return [pasted(task.image, task.mask, *task.reference()) for task in tasks]


def pasted(image: Pixels, mask: Mask, reference: Pixels, reference_mask: Mask) -> Drawing:
    """Put a reference's defect into a mask.

    Each channel is scaled as the surroundings of the two masks differ: black stays black, where
    a shift would tint it.

    Args:
        image: (H, W, 3), the normal image.
        mask: (H, W), where to draw.
        reference: (h, w, 3), the image that shows the defect.
        reference_mask: (h, w), where it shows it.
    """
    pixels = image.copy()
    on_defect = np.zeros_like(mask)
    for fit in fits(reference_mask, mask):
        colours, own = warped(reference, fit)
        here = _surround(image, fit.mask, mask)
        there = _surround(reference, fit.reference, reference_mask)
        gain = np.clip((here + 1) / (there + 1), 1 / _GAIN, _GAIN)
        lit = np.clip(np.rint(colours * gain), 0, 255).astype(np.uint8)
        pixels[own] = lit[own[fit.mask]]
        on_defect |= own
    return Drawing(pixels, on_defect)


def _surround(image: Pixels, part: Mask, mask: Mask) -> npt.NDArray[np.float64]:
    """(3,) mean colour around a part of a mask; of the whole image if nothing is around it."""
    width = max(2, round(_RING * float(part.sum()) ** 0.5))
    box = grown(bounds(part), width + 1, mask.shape)
    away = ndimage.distance_transform_edt(~part[box])
    # Not the nearest pixel: a defect's own edge is often soft.
    ring = (away > 1) & (away <= width + 1) & ~mask[box]
    if not ring.any():
        return np.asarray(image.mean(axis=(0, 1)))
    return np.asarray(image[box][ring].mean(axis=0))
