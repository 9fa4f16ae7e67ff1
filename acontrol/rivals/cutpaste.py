"""CutPaste (Li et al., CVPR 2021): a patch of the normal image itself, moved."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from acontrol.data.crops import bounds
from acontrol.rivals.task import Drawing, PixelMethod, Task
from acontrol.seeding import derive_seed

_JITTER = 0.1


class CutPaste(PixelMethod):
    """Fills masks with patches of their images; the method's own masks are rectangles."""

    name = "cutpaste"

    @property
    def state(self) -> Mapping[str, Any]:
        """Only the version of this code."""
        return {"version": 1}

    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Move a patch into each task's mask."""
        return [self._draw(task) for task in tasks]

    def _draw(self, task: Task) -> Drawing:
        rng = np.random.default_rng(derive_seed(task.seed, "cutpaste"))
        left, top, right, bottom = bounds(task.mask)
        image = Image.fromarray(task.image)
        patch = jittered(cropped(image, (right - left, bottom - top), rng), rng)
        image.paste(patch, (left, top))
        pixels = np.where(task.mask[..., None], np.asarray(image), task.image)
        return Drawing(pixels, task.mask)


def cropped(image: Image.Image, box: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A patch of that width and height from a random place."""
    left, top = (
        int(rng.integers(0, whole - part + 1))
        for whole, part in zip(image.size, box, strict=True)
    )
    return image.crop((left, top, left + box[0], top + box[1]))


def jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and colour, each by up to a tenth."""
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    return image
