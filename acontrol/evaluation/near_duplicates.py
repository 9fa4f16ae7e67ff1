"""Test images that are other photographs of a training piece.

Exact copies are refused elsewhere. A piece photographed again at another exposure is a leak as
well, but only its texture shows it (`acontrol.data.textures`).
"""

from pathlib import Path

import torch

from acontrol.data.textures import COMPARED, SMALLEST, THRESHOLD, can_tell, textures
from acontrol.evaluation.images import ImageSet


def other_photographs(
    test: ImageSet, training: ImageSet, normals: ImageSet
) -> list[tuple[Path, Path]]:
    """Test images with the texture of a training image.

    Returns:
        Files of test images and their nearest training images. Empty if images are too small,
        or if textures of different pieces, the normal images, look the same.
    """
    if min(len(test), len(training), len(normals) - 1) < 1 or test.images.shape[-1] < SMALLEST:
        return []
    if not can_tell(textures(normals.images[:COMPARED])):
        return []
    correlation, nearest = (textures(test.images) @ textures(training.images).T).max(dim=1)
    return [
        (test.files[index], training.files[int(nearest[index])])
        for index in torch.nonzero(correlation > THRESHOLD).flatten().tolist()
    ]
