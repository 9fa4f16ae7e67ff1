"""Bring images and masks to a model's size."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.data.shards import shrink_mask


def fit(image: Image.Image, mask: Image.Image, size: int) -> tuple[Tensor, Tensor]:
    """Resize image and mask to a square, aspect not kept: no defect falls off the edge.

    Returns:
        (3, size, size) in [-1, 1] and (1, size, size) of 0 and 1.
    """
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    if mask.size != (size, size):
        mask = shrink_mask(mask, (size, size))
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return (
        pixels.float() / 127.5 - 1,
        torch.from_numpy(np.array(mask, dtype=np.float32))[None],
    )


def region(
    image: Image.Image, mask: Image.Image, margin: float = 0.5
) -> tuple[Image.Image, Image.Image]:
    """Cut out a square around the mask, larger than it by ``margin`` on each side.

    The square is moved to stay inside the image where it can; beyond the image's edge the
    border pixels are not invented but the square is cut.
    """
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    side = max(right - left, bottom - top) * (1 + 2 * margin)
    width, height = min(side, image.width), min(side, image.height)
    x = min(max((left + right - width) / 2, 0), image.width - width)
    y = min(max((top + bottom - height) / 2, 0), image.height - height)
    box = (
        int(x),
        int(y),
        min(image.width, int(x + width + 1)),
        min(image.height, int(y + height + 1)),
    )
    return image.crop(box), mask.crop(box)
