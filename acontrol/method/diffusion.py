"""Denoising objective: Eqs. (1) and (6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acontrol.config import LossWeighting
from acontrol.seeding import derive_seed


@dataclass(frozen=True)
class Draw:
    """All random numbers of one batch, on the CPU.

    Attributes:
        noise: Epsilon, standard normal.
        posterior_noise: Standard normal, for sampling from the VAE's posterior.
        timesteps: t, uniform over the schedule; starts at 0 (the paper's at 1).
    """

    noise: Float[Tensor, "batch channel height width"]
    posterior_noise: Float[Tensor, "batch moment height width"]
    timesteps: Int[Tensor, " batch"]


def draw(
    seed: int,
    positions: Sequence[int],
    shape: tuple[int, int, int],
    num_timesteps: int,
    moments: int | None = None,
) -> Draw:
    """Draw each sample from its own generator, keyed by (seed, position).

    So a draw does not depend on the rest of the batch, the rank or earlier draws, and no
    generator state needs saving.

    Args:
        seed: The run's seed.
        positions: Global positions of the samples in the stream.
        shape: (channel, height, width) of the latents.
        num_timesteps: Length of the noise schedule.
        moments: Channels of the VAE's moments, if more than the latents'.
    """
    rows = []
    for position in positions:
        generator = torch.Generator().manual_seed(derive_seed(seed, "draw", int(position)))
        rows.append(
            (
                torch.randn(shape, generator=generator),
                torch.randn(moments or shape[0], *shape[1:], generator=generator),
                torch.randint(num_timesteps, (), generator=generator),
            )
        )
    noise, posterior_noise, timesteps = (
        torch.stack(list(column)) for column in zip(*rows, strict=True)
    )
    return Draw(noise, posterior_noise, timesteps)


def denoising_loss(
    noise_pred: Float[Tensor, "batch channel height width"],
    noise: Float[Tensor, "batch channel height width"],
    region: Float[Tensor, "batch 1 height width"] | None = None,
    region_weight: float = 0.0,
) -> Float[Tensor, " batch"]:
    """Mean squared error of the predicted noise, Eq. (6), one value per sample.

    With a ``region_weight``, latents in the region have weight 1 + region_weight in the mean:
    a small defect is otherwise a small part of the loss.
    """
    error = (noise_pred.float() - noise.float()).square()
    if region is None or region_weight == 0:
        return error.flatten(1).mean(dim=1)
    weight = 1 + region_weight * region
    weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    return (weight * error).flatten(1).mean(dim=1)


def timestep_weights(
    alphas_cumprod: Float[Tensor, " timestep"], weighting: LossWeighting
) -> Float[Tensor, " timestep"]:
    """The weight of each timestep in Eq. (6), with mean 1.

    "late" is min(snr, 5) / snr * min(1 / alpha_bar, 30): it takes weight from the small noise
    that a large model masters anyway and puts it on large noise, where text and C' decide
    what the picture becomes. Small models ignore their conditions without it.
    """
    if weighting == "none":
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = snr.clamp(max=5) / snr * (1 / alphas_cumprod).clamp(max=30)
    return weights / weights.mean()
