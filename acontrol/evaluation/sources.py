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
from PIL import Image
from torch import Tensor

from acontrol.rivals.cutpaste import cropped, jittered
from acontrol.rivals.perlin import textured

# Of an image with its original there are six channels.
Sample = tuple[UInt8[Tensor, "channels side side"], Bool[Tensor, "side side"]]
Pair = tuple[
    UInt8[Tensor, "3 side side"], Bool[Tensor, "side side"], UInt8[Tensor, "3 side side"]
]
MaskMaker = Callable[[tuple[int, int], np.random.Generator], npt.NDArray[np.bool_]]

_PATCH_AREA = (0.02, 0.15)  # Of CutPaste's patch, as a share of the image.
_PATCH_ASPECT = (0.3, 1 / 0.3)
_SCAR_WIDTH = (2 / 256, 16 / 256)  # As a share of the image's side, like its length.
_SCAR_LENGTH = (10 / 256, 25 / 256)
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


@runtime_checkable
class Restorable(Protocol):
    """A source that knows its images before their defects."""

    def pair(self, rng: np.random.Generator) -> Pair:
        """Draw what `Source.sample` draws, and the same image without its defect."""


def pair_of(source: Source, rng: np.random.Generator) -> Pair:
    """A sample and its original, or the image once more from a source that knows none."""
    if isinstance(source, Restorable):
        return source.pair(rng)
    image, mask = source.sample(rng)
    return image, mask, image


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
        return self._chosen(rng).sample(rng)

    def pair(self, rng: np.random.Generator) -> Pair:
        """The same, with its original."""
        return pair_of(self._chosen(rng), rng)

    def _chosen(self, rng: np.random.Generator) -> Source:
        if self.ratio is None:
            return self.sources[int(rng.integers(len(self.sources)))]
        if rng.random() < self.ratio:
            return self.sources[0]
        return self.sources[1 + int(rng.integers(len(self.sources) - 1))]


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
        return self.pair(rng)[:2]

    def pair(self, rng: np.random.Generator) -> Pair:
        """The same, with its original."""
        image, _ = self.normals.sample(rng)
        side = int(image.shape[-1])
        mask = self.masks((side, side), rng)
        while not mask.any():
            mask = self.masks((side, side), rng)
        texture = self.textures[int(rng.integers(len(self.textures)))]
        pixels = textured(image.permute(1, 2, 0).numpy(), mask, texture, rng)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask), image


class CutPaste:
    """CutPaste (Li et al., CVPR 2021): a patch or rotated scar of the image, moved."""

    def __init__(self, normals: Source):
        """Cut from normal images."""
        self.normals = normals

    def sample(self, rng: np.random.Generator) -> Sample:
        """Cut and paste."""
        return self.pair(rng)[:2]

    def pair(self, rng: np.random.Generator) -> Pair:
        """The same, with its original."""
        original, _ = self.normals.sample(rng)
        image = Image.fromarray(original.permute(1, 2, 0).numpy())
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
        patch = jittered(cropped(image, box, rng), rng)
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
        return pixels, torch.from_numpy(np.array(mask) > 0), original
