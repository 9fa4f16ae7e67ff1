"""Bases for inpainting: a U-Net that also sees what is around the place to draw in.

Its input is nine channels: the noisy latents, the mask (1 on latents to draw, 0 elsewhere),
and the latents of the image with the masked pixels grey. Mask and image are in the same terms
in training and in sampling; a latent that the mask touches at all is 1, so that no small
defect is lost.
"""

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from acontrol.config import AdapterCard


def is_inpainting(unet: UNet2DConditionModel) -> bool:
    """Whether a U-Net takes nine channels instead of four.

    Raises:
        ValueError: If it takes neither as many as it predicts nor those and the surroundings.
    """
    taken, predicted = unet.config.in_channels, unet.config.out_channels
    if taken not in (predicted, 2 * predicted + 1):
        raise ValueError(
            f"the U-Net takes {taken} channels; need {predicted}, or {2 * predicted + 1} for "
            "inpainting"
        )
    return taken != predicted


def check_kind(card: AdapterCard, unet: UNet2DConditionModel) -> None:
    """Keep adapters of the two kinds of base apart.

    Raises:
        ValueError: If the adapter was trained on one kind and the U-Net is of the other.
    """
    kinds = {False: "a plain", True: "an inpainting"}
    found = is_inpainting(unet)
    if card.inpainting != found:
        raise ValueError(
            f"the adapter was trained on {kinds[card.inpainting]} base and this is "
            f"{kinds[found]} one ({unet.config.in_channels} input channels)"
        )


def mask_out(
    image: Float[Tensor, "batch channel height width"],
    mask: Float[Tensor, "batch 1 height width"],
) -> Float[Tensor, "batch channel height width"]:
    """Images in [-1, 1] with the masked pixels grey."""
    return image * (mask < 0.5)


def concat_inpainting_inputs(
    latents: Float[Tensor, "batch channel height width"],
    mask: Float[Tensor, "batch 1 height width"],
    surroundings: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, "batch nine height width"]:
    """What the U-Net takes: noisy latents, mask, latents of the masked-out images."""
    return torch.cat([latents, mask.to(latents.dtype), surroundings.to(latents.dtype)], dim=1)
