"""Test images that are other photographs of a training piece.

Exact copies are refused elsewhere. A piece photographed again at another exposure is a leak as
well, but only its texture shows it: the image without its coarse shading.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from acontrol.evaluation.images import ImageSet

THRESHOLD = 0.8  # Least correlation of two textures of one piece.
_SIDE = 128
_SMALLEST = 64  # Side below which there is no texture to compare.
_COARSE = 21  # Window of the shading to remove.
_FINE = 3  # Window of the noise to remove.
_RIM = 8  # Cut off on all sides: crops differ.
# Aligned parts share much of their texture; above this median correlation it tells nothing.
_MAX_MEDIAN = 0.3
_COMPARED = 200  # Good images that the median is taken over.


def other_photographs(
    test: ImageSet, training: ImageSet, normals: ImageSet
) -> list[tuple[Path, Path]]:
    """Test images with the texture of a training image.

    Returns:
        Files of test images and their nearest training images. Empty if images are too small,
        or if textures of different pieces, the normal images, look the same.
    """
    if min(len(test), len(training), len(normals) - 1) < 1 or test.images.shape[-1] < _SMALLEST:
        return []
    good = textures(normals.images[:_COMPARED])
    pairs = (good @ good.T)[~torch.eye(len(good), dtype=torch.bool)]
    if float(pairs.median()) > _MAX_MEDIAN:
        return []
    correlation, nearest = (textures(test.images) @ textures(training.images).T).max(dim=1)
    return [
        (test.files[index], training.files[int(nearest[index])])
        for index in torch.nonzero(correlation > THRESHOLD).flatten().tolist()
    ]


def textures(images: Tensor) -> Float[Tensor, "n pixels"]:
    """Unit vectors with correlations as dot products."""
    grey = images.float().mean(dim=1, keepdim=True)
    if grey.shape[-1] > _SIDE:
        grey = F.adaptive_avg_pool2d(grey, _SIDE)
    fine = _blurred(grey - _blurred(grey, _COARSE), _FINE)[..., _RIM:-_RIM, _RIM:-_RIM]
    return F.normalize(fine.flatten(1) - fine.flatten(1).mean(dim=1, keepdim=True), dim=1)


def _blurred(images: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(images, window, 1, window // 2, count_include_pad=False)
