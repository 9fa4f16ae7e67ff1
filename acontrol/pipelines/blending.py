"""What is drawn on: the normal image and its mask, as the denoising steps see them."""

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
    """Of a batch.

    Attributes:
        kept: (batch, channel, side, side) latents of the normal images; None: drawn on nothing.
        inside: (batch, 1, side, side), 1 on latents that may change.
        around: (batch, channel, side, side) latents of the images without what is masked, on
            an inpainting base, whose U-Net sees them; None on others, where the latents
            outside are put back at every step.
    """

    kept: Tensor | None = None
    inside: Tensor | None = None
    around: Tensor | None = None

    def seen(self, latents: Tensor) -> Tensor:
        """What the U-Net takes, for latents of as many or twice as many samples."""
        if self.around is None or self.inside is None:
            return latents
        again = len(latents) // len(self.around)
        return concat_inpainting_inputs(
            latents, torch.cat([self.inside] * again), torch.cat([self.around] * again)
        )

    def blended(
        self, latents: Tensor, noise: Tensor, scheduler: SchedulerMixin, step: int
    ) -> Tensor:
        """Put the normal images back outside the masks, as noisy as the next step expects."""
        if self.kept is None or self.inside is None or self.around is not None:
            return latents
        timesteps = scheduler.timesteps
        last = step + 1 == len(timesteps)
        outside = (
            self.kept
            if last
            else scheduler.add_noise(self.kept, noise, timesteps[step + 1][None])
        )
        return self.inside * latents + (1 - self.inside) * outside


def prepare(
    vae: AutoencoderKL,
    image: Sequence[Image.Image] | None,
    mask: Sequence[Image.Image] | None,
    count: int,
    size: int,
    device: torch.device,
    inpainting: bool,
) -> Canvas:
    """Encode normal images, and take their masks to the latents.

    Args:
        vae: The base's.
        image: Normal images, of any sizes; None: whole pictures are drawn, with nothing kept
            and nothing around.
        mask: 1-bit, of the same sizes.
        count: How many samples.
        size: Side of the square that is drawn, in pixels.
        device: Where the networks run.
        inpainting: Whether the U-Net sees the surroundings.
    """
    if image is None or mask is None:
        return _blank(vae, count, size, device) if inpainting else Canvas()
    pairs = [
        fit(one.convert("RGB"), where, size) for one, where in zip(image, mask, strict=True)
    ]
    pixels = torch.stack([pair[0] for pair in pairs]).to(device, vae.dtype)
    masks = torch.stack([pair[1] for pair in pairs]).to(device)
    kept = _latents(vae, pixels)
    # Any touched latent may change; the pixels outside are put back afterwards.
    inside = F.adaptive_max_pool2d(masks, kept.shape[-1])
    return Canvas(kept, inside, _latents(vae, mask_out(pixels, masks)) if inpainting else None)


def _blank(vae: AutoencoderKL, count: int, size: int, device: torch.device) -> Canvas:
    grey = torch.zeros(count, vae.config.in_channels, size, size, device=device)
    around = _latents(vae, grey.to(vae.dtype))
    return Canvas(inside=torch.ones_like(around[:, :1]), around=around)


def _latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The mean of what the VAE makes of images in [-1, 1], in float32."""
    mean: Tensor = vae.encode(pixels).latent_dist.mean
    return mean.float() * vae.config.scaling_factor


def put_back(drawn: Image.Image, normal: Image.Image, mask: Image.Image | None) -> Image.Image:
    """Bring a drawing to its normal image's size; with a mask, keep the pixels outside it."""
    if drawn.size != normal.size:
        drawn = drawn.resize(normal.size, Image.Resampling.BICUBIC)
    if mask is None:
        return drawn
    result = normal.convert("RGB")
    result.paste(drawn, mask=mask)
    return result
