"""Where a detector's defective training images come from: pictures, mixtures and controls.

The controls know nothing of the defects: DRAEM's Perlin blobs of a foreign texture, and
CutPaste's patches of the image itself.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from acontrol.evaluation.images import ImageSet

Sample = tuple[UInt8[Tensor, "3 side side"], Bool[Tensor, "side side"]]
MaskMaker = Callable[[tuple[int, int], np.random.Generator], npt.NDArray[np.bool_]]

_OPACITY = (0.2, 1.0)  # Of Perlin's texture: one minus DRAEM's beta in [0, 0.8].
_PATCH_AREA = (0.02, 0.15)  # Of CutPaste's patch, as a share of the image.
_PATCH_ASPECT = (0.3, 1 / 0.3)
_SCAR_WIDTH = (2 / 256, 16 / 256)  # Of the image's side, as its length.
_SCAR_LENGTH = (10 / 256, 25 / 256)
_JITTER = 0.1


@runtime_checkable
class Source(Protocol):
    """Makes one training image with its mask; the generator decides which."""

    def sample(self, rng: np.random.Generator) -> Sample:
        """Draw."""


class Paired:
    """Labelled images: each defect as often as the others, then each image."""

    def __init__(self, pictures: ImageSet):
        """Take the images, at least one."""
        self.pictures = pictures
        self.kinds = [
            np.array([place for place, one in enumerate(pictures.kinds) if one == kind])
            for kind in sorted(set(pictures.kinds))
        ]

    def sample(self, rng: np.random.Generator) -> Sample:
        """Draw one of them."""
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        place = int(kind[int(rng.integers(len(kind)))])
        return self.pictures.images[place], self.pictures.masks[place]


class Mixed:
    """One of several sources, each as often."""

    def __init__(self, sources: Sequence[Source]):
        """Take the sources."""
        self.sources = sources

    def sample(self, rng: np.random.Generator) -> Sample:
        """Draw from one of them."""
        return self.sources[int(rng.integers(len(self.sources)))].sample(rng)


class PerlinTexture:
    """DRAEM: a foreign texture shows through blobs of noise on a normal image."""

    def __init__(self, normals: ImageSet, masks: MaskMaker, textures: Sequence[Image.Image]):
        """Take normal images, textures of their size, and what makes blobs (or none)."""
        self.normals, self.masks, self.textures = normals, masks, textures

    def sample(self, rng: np.random.Generator) -> Sample:
        """Paste a texture."""
        image = self.normals.images[int(rng.integers(len(self.normals)))]
        side = int(image.shape[-1])
        mask = self.masks((side, side), rng)
        while not mask.any():
            mask = self.masks((side, side), rng)
        texture = _changed(self.textures[int(rng.integers(len(self.textures)))], rng)
        opacity = rng.uniform(*_OPACITY)
        before = image.permute(1, 2, 0).numpy().astype(np.float64)
        after = opacity * np.asarray(texture, np.float64) + (1 - opacity) * before
        made = np.where(mask[..., None], after, before).round().astype(np.uint8)
        return torch.from_numpy(made).permute(2, 0, 1), torch.from_numpy(mask)


class CutPaste:
    """CutPaste (Li et al., CVPR 2021): a patch or a turned scar of the image, moved."""

    def __init__(self, normals: ImageSet):
        """Take normal images."""
        self.normals = normals

    def sample(self, rng: np.random.Generator) -> Sample:
        """Cut and paste."""
        pixels = self.normals.images[int(rng.integers(len(self.normals)))]
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        side = image.width
        scar = rng.random() < 0.5
        if scar:
            width = rng.uniform(*_SCAR_WIDTH) * side
            height = rng.uniform(*_SCAR_LENGTH) * side
        else:
            area = rng.uniform(*_PATCH_AREA) * side**2
            aspect = np.exp(rng.uniform(*np.log(_PATCH_ASPECT)))
            width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)
        box = (min(side, max(2, round(width))), min(side, max(2, round(height))))
        patch = _jittered(_crop(image, box, rng), rng)
        cover = Image.new("L", box, 255)
        if scar:
            angle = rng.uniform(-45, 45)
            patch = patch.rotate(angle, Image.Resampling.BILINEAR, expand=True)
            cover = cover.rotate(angle, expand=True)
        left, top = (int(rng.integers(0, max(1, side - one + 1))) for one in patch.size)
        mask = Image.new("L", image.size, 0)
        mask.paste(cover, (left, top), cover)
        image.paste(patch, (left, top), cover)
        made = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return made, torch.from_numpy(np.array(mask) > 0)


def _crop(image: Image.Image, box: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    left, top = (
        int(rng.integers(0, whole - part + 1))
        for whole, part in zip(image.size, box, strict=True)
    )
    return image.crop((left, top, left + box[0], top + box[1]))


def _jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    return image


def _changed(texture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Three of DRAEM's changes, in Pillow's words."""
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda one: ImageEnhance.Brightness(one).enhance(rng.uniform(0.7, 1.3)),
        lambda one: ImageEnhance.Contrast(one).enhance(rng.uniform(0.5, 2.0)),
        lambda one: ImageEnhance.Color(one).enhance(rng.uniform(0.0, 2.0)),
        lambda one: ImageEnhance.Sharpness(one).enhance(rng.uniform(0.0, 3.0)),
        lambda one: ImageOps.solarize(one, int(rng.integers(32, 129))),
        lambda one: ImageOps.posterize(one, int(rng.integers(3, 7))),
        ImageOps.invert,
        ImageOps.autocontrast,
        ImageOps.equalize,
        lambda one: ImageOps.mirror(one.rotate(90 * int(rng.integers(4)))),
    ]
    for place in rng.choice(len(changes), 3, replace=False):
        texture = changes[int(place)](texture)
    return texture
