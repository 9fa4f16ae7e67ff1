"""Which test images are other photographs of a piece that is trained on.

Exact copies are refused elsewhere. A piece that was photographed twice, at another exposure, is
a leak as well, but one that only its texture gives away: the image without its coarse shades.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from acontrol.evaluation.images import ImageSet

ALIKE = 0.8  # Correlation of two textures of one piece, or more.
_SIDE = 128
_SMALLEST = 64  # Side below which there is no texture to compare.
_COARSE = 21  # Window of the shades that are taken away.
_FINE = 3  # Window of the noise that is.
_RIM = 8  # Cut off all around: crops differ.
# Aligned parts of one kind have much of their texture in common: then it tells nothing.
_ALL_ALIKE = 0.3
_COMPARED = 200  # Images that this is judged by.


def other_photographs(
    test: ImageSet, training: ImageSet, normals: ImageSet
) -> list[tuple[Path, Path]]:
    """Test images whose texture is that of a training image, each with its nearest.

    Args:
        test: Images to find.
        training: Images that are trained on.
        normals: Good images, by which different pieces are judged.

    Returns:
        File of the test image and of the training image; none where different pieces cannot be
        told apart by their textures, or images are too small.
    """
    if min(len(test), len(training), len(normals) - 1) < 1 or test.images.shape[-1] < _SMALLEST:
        return []
    good = textures(normals.images[:_COMPARED])
    pairs = (good @ good.T)[~torch.eye(len(good), dtype=torch.bool)]
    if float(pairs.median()) > _ALL_ALIKE:
        return []
    near_duplicates, nearest = (textures(test.images) @ textures(training.images).T).max(dim=1)
    return [
        (test.files[place], training.files[int(nearest[place])])
        for place in torch.nonzero(near_duplicates > ALIKE).flatten().tolist()
    ]


def textures(images: Tensor) -> Float[Tensor, "n pixels"]:
    """Vectors of length 1 whose products are correlations."""
    grey = images.float().mean(dim=1, keepdim=True)
    if grey.shape[-1] > _SIDE:
        grey = F.adaptive_avg_pool2d(grey, _SIDE)
    fine = _blurred(grey - _blurred(grey, _COARSE), _FINE)[..., _RIM:-_RIM, _RIM:-_RIM]
    return F.normalize(fine.flatten(1) - fine.flatten(1).mean(dim=1, keepdim=True), dim=1)


def _blurred(images: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(images, window, 1, window // 2, count_include_pad=False)
