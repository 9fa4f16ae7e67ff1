"""What the pipeline is given: lists of one entry per image, pictures of any mode."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from acontrol.config import AdapterCard
from acontrol.data.images import reference_view
from acontrol.data.pixels import PixelError, as_rgb

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.bool_]


def check_lists(lists: dict[str, Any]) -> None:
    """Raise ValueError unless each list has one entry per prompt and each mask fits."""
    count = len(lists["prompt"])
    if count == 0:
        raise ValueError("need at least one prompt, got an empty list")
    for name, values in lists.items():
        if isinstance(values, str) or (values is not None and len(values) != count):
            raise ValueError(f"need a list of {count} {name}, one per prompt, got {values!r}")
    if (lists["image"] is None) != (lists["mask_image"] is None):
        raise ValueError("image and mask_image go together: give both or neither")
    for image, mask in [
        *zip(lists["reference_image"], lists["reference_mask"], strict=True),
        *zip(lists["image"] or [], lists["mask_image"] or [], strict=True),
    ]:
        if image.size != mask.size:
            raise ValueError(f"an image of {image.size} has a mask of {mask.size}")


def read_pictures(
    images: Sequence[Image.Image], name: str, read: Callable[[Image.Image], Pixels]
) -> list[Image.Image]:
    """Images or masks of any mode, as `acontrol.data.pixels` reads those of files.

    Raises:
        ValueError: If one cannot be read without a guess; names which.
    """
    pictures = []
    for number, image in enumerate(images):
        try:
            pictures.append(Image.fromarray(read(image)))
        except PixelError as error:
            raise ValueError(f"{name} {number}: {error}") from error
    return pictures


def vlm_inputs(
    images: Sequence[Image.Image], masks: Sequence[Image.Image], size: int, card: AdapterCard
) -> tuple[Tensor, Tensor]:
    """References and their masks as the vision tower's input, in the card's view."""
    views = [
        reference_view(as_rgb(image), mask, card.reference_view, size)
        for image, mask in zip(images, masks, strict=True)
    ]
    pixels, regions = zip(*views, strict=True)
    return torch.stack(pixels), torch.stack(regions)
