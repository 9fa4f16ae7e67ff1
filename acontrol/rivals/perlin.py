"""DRAEM's control (Zavrtanik et al., 2021): a foreign texture blended into a mask."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from acontrol.data import builtin
from acontrol.masks.shape import Mask
from acontrol.pipelines.compositing import Pixels
from acontrol.rivals.task import Drawing, PixelMethod, Task
from acontrol.seeding import derive_seed

TEXTURES = 12  # Of each built-in material.
_OPACITY = (0.2, 1.0)  # Of the texture: one minus DRAEM's beta in [0, 0.8].
_SIDES = (32, 512)  # In pixels, at which a texture is drawn.


class Perlin(PixelMethod):
    """Blends built-in materials into masks; DRAEM takes photographs (DTD)."""

    name = "perlin"

    @property
    def state(self) -> Mapping[str, Any]:
        """Only the version of this code."""
        return {"version": 1}

    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Blend a texture into each task's mask."""
        return [self._draw(task) for task in tasks]

    def _draw(self, task: Task) -> Drawing:
        rng = np.random.default_rng(derive_seed(task.seed, "perlin"))
        names = [name for name in builtin.CATEGORIES if name != task.category]
        name, number = names[int(rng.integers(len(names)))], int(rng.integers(TEXTURES))
        height, width = task.mask.shape
        side = min(max(height, width, _SIDES[0]), _SIDES[1])
        texture = Image.fromarray(
            builtin.draw(name, "good", seed=number, resolution=side).image
        ).resize((width, height))
        return Drawing(textured(task.image, task.mask, texture, rng), task.mask)


def textured(
    image: Pixels, mask: Mask, texture: Image.Image, rng: np.random.Generator
) -> Pixels:
    """Blend a randomly augmented texture, of the image's size, into a mask."""
    texture = _augmented(texture, rng)
    opacity = rng.uniform(*_OPACITY)
    before = image.astype(np.float64)
    after = opacity * np.asarray(texture, np.float64) + (1 - opacity) * before
    return np.where(mask[..., None], after, before).round().astype(np.uint8)


def _augmented(texture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Three random augmentations of DRAEM's, as Pillow has them."""
    augmentations: list[Callable[[Image.Image], Image.Image]] = [
        lambda image: ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3)),
        lambda image: ImageEnhance.Contrast(image).enhance(rng.uniform(0.5, 2.0)),
        lambda image: ImageEnhance.Color(image).enhance(rng.uniform(0.0, 2.0)),
        lambda image: ImageEnhance.Sharpness(image).enhance(rng.uniform(0.0, 3.0)),
        lambda image: ImageOps.solarize(image, int(rng.integers(32, 129))),
        lambda image: ImageOps.posterize(image, int(rng.integers(3, 7))),
        ImageOps.invert,
        ImageOps.autocontrast,
        ImageOps.equalize,
        lambda image: ImageOps.mirror(image.rotate(90 * int(rng.integers(4)))),
    ]
    for index in rng.choice(len(augmentations), 3, replace=False):
        texture = augmentations[int(index)](texture)
    return texture
