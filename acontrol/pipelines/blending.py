"""The normal images to draw on and their masks, as latents for the denoising steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SchedulerMixin
from PIL import Image
from torch import Tensor

from acontrol.data.images import fit
from acontrol.networks.inpainting import concat_inpainting_inputs, mask_out


@dataclass(frozen=True)
class Canvas:
    """A batch of normal images in latent space.

    Attributes:
        normal: (batch, channel, side, side) latents of the normal images; None without any.
        mask: (batch, 1, side, side), 1 on latents that may change.
        masked: (batch, channel, side, side) latents of the masked-out images, input of an
            inpainting base's U-Net; None on other bases, where the latents outside the mask
            are replaced before every step instead.
    """

    normal: Tensor | None = None
    mask: Tensor | None = None
    masked: Tensor | None = None

    def unet_input(self, latents: Tensor) -> Tensor:
        """The U-Net's input, for latents of one or two times as many samples."""
        if self.masked is None or self.mask is None:
            return latents
        times = len(latents) // len(self.masked)
        return concat_inpainting_inputs(
            latents, torch.cat([self.mask] * times), torch.cat([self.masked] * times)
        )

    def blend(
        self,
        latents: Tensor,
        noise: Tensor,
        scheduler: SchedulerMixin,
        timestep: Tensor | None = None,
    ) -> Tensor:
        """Put the normal images outside the masks, at a timestep's noise level or clean."""
        if self.normal is None or self.mask is None or self.masked is not None:
            return latents
        outside = self.normal
        if timestep is not None:
            outside = scheduler.add_noise(outside, noise, timestep[None])
        return self.mask * latents + (1 - self.mask) * outside


def encode_canvas(
    vae: AutoencoderKL,
    image: Sequence[Image.Image] | None,
    mask: Sequence[Image.Image] | None,
    count: int,
    size: int,
    device: torch.device,
    inpainting: bool,
) -> Canvas:
    """Encode normal images, and downsample their masks to the latents.

    Args:
        vae: The base's.
        image: Normal images in RGB, of any sizes; None to draw whole images.
        mask: 1-bit, of the same sizes.
        count: Number of samples.
        size: Side of the square to draw, in pixels.
        device: Where the networks run.
        inpainting: Whether the base is for inpainting.
    """
    if image is None or mask is None:
        return _blank(vae, count, size, device) if inpainting else Canvas()
    pairs = [fit(normal, region, size) for normal, region in zip(image, mask, strict=True)]
    pixels = torch.stack([pair[0] for pair in pairs]).to(device, vae.dtype)
    masks = torch.stack([pair[1] for pair in pairs]).to(device)
    latents = latents_of(vae, pixels)
    # Any touched latent may change; the pixels outside are restored afterwards.
    inside = F.adaptive_max_pool2d(masks, latents.shape[-1])
    masked = latents_of(vae, mask_out(pixels, masks)) if inpainting else None
    return Canvas(latents, inside, masked)


def _blank(vae: AutoencoderKL, count: int, size: int, device: torch.device) -> Canvas:
    grey = torch.zeros(count, vae.config.in_channels, size, size, device=device)
    masked = latents_of(vae, grey.to(vae.dtype))
    return Canvas(mask=torch.ones_like(masked[:, :1]), masked=masked)


def encode_start(
    vae: AutoencoderKL, image: Sequence[Image.Image], size: int, device: torch.device
) -> Tensor:
    """Encode images to start from, in RGB and of any sizes: (batch, channel, side, side)."""
    blank = Image.new("1", (size, size))
    pixels = torch.stack([fit(one, blank, size)[0] for one in image])
    return latents_of(vae, pixels.to(device, vae.dtype))


def latents_of(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The VAE's posterior mean for images in [-1, 1], scaled, in float32."""
    mean: Tensor = vae.encode(pixels).latent_dist.mean
    return mean.float() * vae.config.scaling_factor
