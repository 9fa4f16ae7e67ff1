"""Painted defects: the built-in data set's, painted on the normal image and fitted to the mask.

A control that knows what defects look like, but no photograph of one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from acontrol.data.builtin import ATTRIBUTES, DEFECT_TYPES
from acontrol.data.builtin.rendering import paint
from acontrol.pipelines.compositing import Pixels
from acontrol.rivals.copy_paste import pasted
from acontrol.rivals.task import Drawing, PixelMethod, Task
from acontrol.seeding import derive_seed

_SIDES = (64, 256)  # In pixels, at which a defect is painted.


class Procedural(PixelMethod):
    """Paints the defect of that name, or for other names one of the six by the seed."""

    name = "procedural"

    @property
    def state(self) -> Mapping[str, Any]:
        """Only the version of this code."""
        return {"version": 1}

    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Paint a defect for each task."""
        return [self._draw(task) for task in tasks]

    def _draw(self, task: Task) -> Drawing:
        rng = np.random.default_rng(derive_seed(task.seed, "procedural"))
        other = DEFECT_TYPES[int(rng.integers(len(DEFECT_TYPES)))]
        defect = task.defect if task.defect in DEFECT_TYPES else other
        attributes = ATTRIBUTES[defect]
        attribute = attributes[int(rng.integers(len(attributes)))]
        painted, mask = paint(_square(task.image), defect, attribute, rng)
        return pasted(task.image, task.mask, painted, mask)


def _square(image: Pixels) -> Pixels:
    """The normal image's surface as a square, mirrored where it is too short."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.pad(image, ((0, side - height), (0, side - width), (0, 0)), "symmetric")
    size = min(max(side, _SIDES[0]), _SIDES[1])
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))
