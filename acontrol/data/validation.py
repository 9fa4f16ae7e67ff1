"""Whether the images and masks that a folder names can be used."""

import os
from collections.abc import Iterable

from acontrol.config import UserError
from acontrol.data.mvtec import LabelledImage
from acontrol.data.pixels import read_image, read_mask


def check(
    images: Iterable[LabelledImage], skip_bad: bool
) -> tuple[list[LabelledImage], list[str]]:
    """Decode each image and its mask.

    Args:
        images: What `MvtecFolder.labelled` gives.
        skip_bad: Leave out what is bad, instead of stopping at the first.

    Returns:
        The good images, and what is wrong with each of the others.

    Raises:
        UserError: Without `skip_bad`, for the first bad image or mask.
    """
    good, messages = [], []
    for one in images:
        try:
            height, width, _ = read_image(one.image).shape
            if not os.path.lexists(one.mask):
                raise UserError(
                    f"{one.image}: has no mask; put it at {one.mask}, or remove the image"
                )
            read_mask(one.mask, (width, height))
        except UserError as error:
            if not skip_bad:
                raise
            messages.append(str(error))
        else:
            good.append(one)
    return good, messages
