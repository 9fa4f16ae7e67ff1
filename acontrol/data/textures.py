"""Textures, by which other photographs of a piece are found.

A piece photographed again at another exposure shows only in its texture: the image without its
coarse shading.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

THRESHOLD = 0.8  # Least correlation of two textures of one piece.
SMALLEST = 64  # Side of images in pixels below which there is no texture to compare.
COMPARED = 200  # Good images that `can_tell` looks at.
_SIDE = 128
_COARSE = 21  # Window of the shading to remove.
_FINE = 3  # Window of the noise to remove.
_RIM = 8  # Cut off on all sides: crops differ.
# Aligned parts share much of their texture; above this median correlation it tells nothing.
_MAX_MEDIAN = 0.3


def textures(images: Tensor) -> Float[Tensor, "n pixels"]:
    """Unit vectors with correlations as dot products."""
    grey = images.float().mean(dim=1, keepdim=True)
    if grey.shape[-1] > _SIDE:
        grey = F.adaptive_avg_pool2d(grey, _SIDE)
    fine = _blurred(grey - _blurred(grey, _COARSE), _FINE)[..., _RIM:-_RIM, _RIM:-_RIM]
    return F.normalize(fine.flatten(1) - fine.flatten(1).mean(dim=1, keepdim=True), dim=1)


def can_tell(good: Float[Tensor, "n pixels"]) -> bool:
    """Whether textures tell pieces apart: those of good images differ from each other."""
    pairs = (good @ good.T)[~torch.eye(len(good), dtype=torch.bool)]
    return len(good) > 1 and float(pairs.median()) <= _MAX_MEDIAN


def _blurred(images: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(images, window, 1, window // 2, count_include_pad=False)
