"""How colourful a drawing may be: a detector must not learn that colour means defect."""

from collections.abc import Callable, Sequence

import numpy as np

from acontrol.data.images import image_size, read_image, read_mask
from acontrol.data.mvtec import LabelledImage
from acontrol.generation.plan import Reference
from acontrol.masks.sampler import DefectType
from acontrol.pipelines.compositing import Pixels, saturation

_SHARE = 0.999  # Of the pixels; the rest is noise of the camera.


class ColourLimits:
    """The most saturation that the normal image and real defects of that type show."""

    def __init__(self, training: Callable[[DefectType], Sequence[LabelledImage]]):
        """``training`` lists a type's training images."""
        self._training = training
        self._defects: dict[Reference | DefectType, float] = {}

    def of(self, reference: Reference, normal: Pixels) -> float:
        """The limit for a drawing, in levels of 255; 0 on a normal image without colour."""
        own = saturation(normal)
        if not own.any():
            return 0.0
        kind = reference.defect_type or reference
        if kind not in self._defects:
            self._defects[kind] = self._measure(reference)
        return max(float(np.quantile(own, _SHARE)), self._defects[kind])

    def _measure(self, reference: Reference) -> float:
        images = self._training(reference.defect_type) if reference.defect_type else []
        files = [(image.image, image.mask) for image in images]
        levels = [
            saturation(read_image(image))[read_mask(mask, image_size(image))]
            for image, mask in files or [(reference.image, reference.mask)]
        ]
        return float(np.quantile(np.concatenate(levels), _SHARE))
