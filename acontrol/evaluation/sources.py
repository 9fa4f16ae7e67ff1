"""Sources of a detector's defective training images: labelled images, mixtures, controls.

The controls know no real defects: DRAEM's Perlin blobs of a foreign texture, and CutPaste's
patches of the image itself.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Sample = tuple[UInt8[Tensor, "3 side side"], Bool[Tensor, "side side"]]
MaskMaker = Callable[[tuple[int, int], np.random.Generator], npt.NDArray[np.bool_]]

_OPACITY = (0.2, 1.0)  # Of Perlin's texture: one minus DRAEM's beta in [0, 0.8].
_PATCH_AREA = (0.02, 0.15)  # Of CutPaste's patch, as a share of the image.
_PATCH_ASPECT = (0.3, 1 / 0.3)
_SCAR_WIDTH = (2 / 256, 16 / 256)  # As a share of the image's side, like its length.
_SCAR_LENGTH = (10 / 256, 25 / 256)
_JITTER = 0.1
_BRIGHTNESS = 0.2


@runtime_checkable
class Source(Protocol):
    """Draws training images with their masks."""

    def sample(self, rng: np.random.Generator) -> Sample:
        """Draw one."""


@runtime_checkable
class Images(Protocol):
    """Images with their masks, as an `ImageSet` has them."""

    @property
    def defects(self) -> tuple[str, ...]:
        """Defect type of each, or "good"."""

    def __len__(self) -> int:
        """Number of images."""

    def at(self, index: int, rng: np.random.Generator) -> Sample:
        """One of them, or a random part of it."""

    def sample(self, rng: np.random.Generator) -> Sample:
        """Draw one."""


class Paired:
    """Labelled images, at least one: defects are equally likely, then images of a defect."""

    def __init__(self, images: Images):
        """Group images by defect."""
        self.images = images
        defects = np.array(images.defects)
        self._groups = [np.flatnonzero(defects == defect) for defect in np.unique(defects)]

    def index(self, rng: np.random.Generator) -> int:
        """Draw the index of an image."""
        group = self._groups[int(rng.integers(len(self._groups)))]
        return int(group[int(rng.integers(len(group)))])

    def sample(self, rng: np.random.Generator) -> Sample:
        """Draw an image."""
        return self.images.at(self.index(rng), rng)


class Mixed:
    """Several sources, equally likely, or the first at a ratio of its own."""

    def __init__(self, sources: Sequence[Source], ratio: float | None = None):
        """Mix sources; ``ratio`` is the share of the first."""
        self.sources, self.ratio = sources, ratio

    def sample(self, rng: np.random.Generator) -> Sample:
        """Draw from a random source."""
        if self.ratio is None:
            return self.sources[int(rng.integers(len(self.sources)))].sample(rng)
        if rng.random() < self.ratio:
            return self.sources[0].sample(rng)
        return self.sources[1 + int(rng.integers(len(self.sources) - 1))].sample(rng)


def augmented(sample: Sample, rng: np.random.Generator) -> Sample:
    """Turn by right angles, mirror and brighten or darken by up to a fifth."""
    image, mask = sample
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    brightness = rng.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS)
    image, mask = (part.rot90(turns, (-2, -1)) for part in (image, mask))
    if mirrored:
        image, mask = image.flip(-1), mask.flip(-1)
    image = (image.float() * brightness).round().clamp(0, 255).to(torch.uint8)
    return image, mask


class PerlinTexture:
    """DRAEM: a foreign texture blended into blobs of Perlin noise on a normal image."""

    def __init__(self, normals: Source, masks: MaskMaker, textures: Sequence[Image.Image]):
        """Use textures of the normal images' size; ``masks`` may give empty masks."""
        self.normals, self.masks, self.textures = normals, masks, textures

    def sample(self, rng: np.random.Generator) -> Sample:
        """Blend in a texture."""
        image, _ = self.normals.sample(rng)
        side = int(image.shape[-1])
        mask = self.masks((side, side), rng)
        while not mask.any():
            mask = self.masks((side, side), rng)
        texture = _augmented(self.textures[int(rng.integers(len(self.textures)))], rng)
        opacity = rng.uniform(*_OPACITY)
        before = image.permute(1, 2, 0).numpy().astype(np.float64)
        after = opacity * np.asarray(texture, np.float64) + (1 - opacity) * before
        pixels = np.where(mask[..., None], after, before).round().astype(np.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask)


class CutPaste:
    """CutPaste (Li et al., CVPR 2021): a patch or rotated scar of the image, moved."""

    def __init__(self, normals: Source):
        """Cut from normal images."""
        self.normals = normals

    def sample(self, rng: np.random.Generator) -> Sample:
        """Cut and paste."""
        pixels, _ = self.normals.sample(rng)
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
        left, top = (int(rng.integers(0, max(1, side - length + 1))) for length in patch.size)
        mask = Image.new("L", image.size, 0)
        mask.paste(cover, (left, top), cover)
        image.paste(patch, (left, top), cover)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels, torch.from_numpy(np.array(mask) > 0)


def _crop(image: Image.Image, box: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    left, top = (
        int(rng.integers(0, whole - part + 1))
        for whole, part in zip(image.size, box, strict=True)
    )
    return image.crop((left, top, left + box[0], top + box[1]))


def _jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    return image


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
