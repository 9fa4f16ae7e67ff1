"""What is drawn on: the normal image and its mask, as the denoising steps see them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SchedulerMixin
from PIL import Image
from torch import Tensor

from acontrol.data.framing import fit


@dataclass(frozen=True)
class Canvas:
    """Of a batch.

    Attributes:
        kept: (batch, channel, side, side) latents of the normal images; None: drawn on nothing.
        inside: (batch, 1, side, side), 1 on latents that may change.
    """

    kept: Tensor | None = None
    inside: Tensor | None = None

    def blended(
        self, latents: Tensor, noise: Tensor, scheduler: SchedulerMixin, step: int
    ) -> Tensor:
        """Put the normal images back outside the masks, as noisy as the next step expects."""
        if self.kept is None or self.inside is None:
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
    image: Sequence[Image.Image],
    mask: Sequence[Image.Image],
    size: int,
    device: torch.device,
) -> Canvas:
    """Encode normal images, and take their masks to the latents.

    Args:
        vae: The base's.
        image: Normal images, of any sizes.
        mask: 1-bit, of the same sizes.
        size: Side of the square that is drawn, in pixels.
        device: Where the networks run.
    """
    pairs = [
        fit(one.convert("RGB"), where, size) for one, where in zip(image, mask, strict=True)
    ]
    pixels = torch.stack([pair[0] for pair in pairs]).to(device, vae.dtype)
    masks = torch.stack([pair[1] for pair in pairs]).to(device)
    kept = vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor
    # Any touched latent may change; the pixels outside are put back afterwards.
    return Canvas(kept, F.adaptive_max_pool2d(masks, kept.shape[-1]))
