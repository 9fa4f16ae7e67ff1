"""Bring images and masks to a model's size, and its tensors back to pictures."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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


def shrink_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a 1-bit mask; a defect thinner than a new pixel keeps every pixel it touches."""
    covered = mask.convert("L").resize(size, Image.Resampling.BOX)
    half = covered.point(lambda value: 255 * (value >= 128))
    if half.getbbox() is None:
        half = covered.point(lambda value: 255 * (value > 0))
    if half.getbbox() is None:  # A speck under 1/255 of a pixel: round it up to one.
        left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
        x = min(size[0] - 1, (left + right) * size[0] // (2 * mask.width))
        y = min(size[1] - 1, (top + bottom) * size[1] // (2 * mask.height))
        half.putpixel((x, y), 255)
    return half.convert("1")


def pictures(images: Tensor) -> list[Image.Image]:
    """Turn (batch, 3, height, width) in [-1, 1] into PIL, rounded to the nearest level."""
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in levels.cpu()]
