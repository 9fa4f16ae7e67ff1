"""Inpainting bases: a U-Net that also sees the surroundings of the region to draw.

Its input has nine channels: the noisy latents, the mask (1 on latents to draw, 0 elsewhere),
and the latents of the image with the masked pixels grey. Training and sampling prepare them
alike; any latent that the mask touches is 1, so that small defects are not lost.
"""

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from acontrol.config import AdapterCard


def is_inpainting(unet: UNet2DConditionModel) -> bool:
    """Whether a U-Net takes nine channels instead of four.

    Raises:
        ValueError: If it takes neither number of channels.
    """
    num_in, num_out = unet.config.in_channels, unet.config.out_channels
    if num_in not in (num_out, 2 * num_out + 1):
        raise ValueError(
            f"the U-Net takes {num_in} channels; need {num_out}, or {2 * num_out + 1} for "
            "inpainting"
        )
    return num_in != num_out


def check_inpainting(card: AdapterCard, unet: UNet2DConditionModel) -> None:
    """Refuse an adapter for a plain base on an inpainting one, and the reverse.

    Raises:
        ValueError: If adapter and U-Net do not match.
    """
    names = {False: "a plain", True: "an inpainting"}
    inpainting = is_inpainting(unet)
    if card.inpainting != inpainting:
        raise ValueError(
            f"the adapter was trained on {names[card.inpainting]} base and this is "
            f"{names[inpainting]} one ({unet.config.in_channels} input channels)"
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
    masked_latents: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, "batch nine height width"]:
    """The U-Net's input: noisy latents, mask, latents of the masked-out images."""
    mask, masked_latents = mask.to(latents.dtype), masked_latents.to(latents.dtype)
    return torch.cat([latents, mask, masked_latents], dim=1)
