"""AnomalyControl: the frozen networks, the adapter, and the training forward (Algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acontrol.config import DropoutConfig, RunConfig
from acontrol.data.features import FeatureBatch, Features
from acontrol.data.stream import Batch
from acontrol.method.condition_dropout import chances, dropped_conditions
from acontrol.method.diffusion import (
    denoising_loss,
    draw,
    timestep_weights,
)
from acontrol.method.encoder import FrozenEncoder, embed_text
from acontrol.method.sga import SemanticAdapter, install_processors
from acontrol.networks.inpainting import concat_inpainting_inputs, is_inpainting
from acontrol.networks.load import BaseModels


@dataclass(frozen=True)
class Losses:
    """Result of one training forward.

    Attributes:
        loss: Mean of Eq. (6) over the batch; carries the gradient.
        per_sample: Eq. (6) of each sample, without gradient.
        energy_before: E of Eq. (3) before ASEA.
        energy_after: E after it.
    """

    loss: Float[Tensor, ""]
    per_sample: Float[Tensor, " batch"]
    energy_before: Float[Tensor, " batch"]
    energy_after: Float[Tensor, " batch"]


class AnomalyControl(nn.Module):
    """The frozen networks and the adapter; only ``adapter`` has gradients."""

    def __init__(self, base: BaseModels, adapter: SemanticAdapter, config: RunConfig):
        """Install the adapter's attention processors into the base's U-Net."""
        super().__init__()
        self.vae, self.text_encoder, self.unet = base.vae, base.text_encoder, base.unet
        self.vlm = base.vlm
        self.tokenizer, self.scheduler = base.tokenizer, base.scheduler
        self.adapter = adapter
        self.config = config
        self.encoder = FrozenEncoder(base, config.csm, config.asea)
        channels, factor = base.latent_shape
        side = config.data.resolution // factor
        self.latent_shape = (channels, side, side)
        self.inpainting = is_inpainting(base.unet)
        weights = timestep_weights(base.scheduler.alphas_cumprod, config.optim.loss_weighting)
        self.timestep_weights = weights.to(base.unet.device)
        self._no_text: Tensor | None = None
        install_processors(self.unet)

    @property
    def device(self) -> torch.device:
        """The frozen networks' device."""
        return self.vae.device

    def forward(
        self,
        batch: Batch | FeatureBatch,
        project: Callable[[Tensor], Tensor] | None = None,
        *,
        seed: int | None = None,
        dropout: DropoutConfig | None = None,
    ) -> Losses:
        """Compute Eq. (6) on one batch.

        Args:
            batch: Samples with their references, or their precomputed features.
            project: Replaces the adapter's own forward, for a DeepSpeed engine.
            seed: Of noise and timesteps; by default the run's.
            dropout: Of the conditions; by default the run's.
        """
        device = self.device
        seed = self.config.seed if seed is None else seed
        with torch.no_grad():
            drawn = draw(
                seed,
                batch.positions,
                self.latent_shape,
                self.scheduler.config.num_train_timesteps,
                moments=self.latent_shape[0] * (2 if self.inpainting else 1),
            )
            drop_text, drop_semantic = dropped_conditions(
                chances(seed, batch.positions), dropout or self.config.dropout
            )
            features = self.encoder(batch) if isinstance(batch, Batch) else batch
            latents = self._latents(features, drawn.posterior_noise)
            latents, *masked_latents = latents.split(self.latent_shape[0], dim=1)
            noise, timesteps = drawn.noise.to(device), drawn.timesteps.to(device)
            noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
            if self.inpainting:
                noisy_latents = concat_inpainting_inputs(
                    noisy_latents, features.latent_mask.to(device), *masked_latents
                )
            has_text = ~drop_text.to(device)[:, None, None]
            text = torch.where(has_text, features.text.to(device), self._empty_text())
            has_semantic = ~drop_semantic.to(device)[:, None, None]
            tokens = features.tokens.to(device) * has_semantic
        fused = (project or self.adapter)(tokens)
        noise_pred = self.unet(
            # In one layout, whoever made them: compiled code is for one.
            noisy_latents.to(self.unet.dtype).contiguous(),
            timesteps,
            text,
            cross_attention_kwargs={
                "semantic": self.adapter.split(fused),
                "semantic_scale": self.config.sga.scale,
            },
        ).sample
        per_sample = (
            denoising_loss(
                noise_pred,
                noise,
                features.latent_mask.to(device),
                self.config.optim.mask_weight,
            )
            * self.timestep_weights[timesteps]
        )
        before, after = features.energy_before.to(device), features.energy_after.to(device)
        return Losses(per_sample.mean(), per_sample.detach(), before, after)

    def warm_up(self, batch_size: int) -> None:
        """Run the U-Net forward and backward once on zeros, as a step of that size does."""
        device, dtype = self.device, self.unet.dtype
        # As laid out in a step, or its code is not this one's.
        text = self._empty_text().repeat(batch_size, 1, 1)
        pool = self.adapter.pool
        count = self.vlm.query_tokens.shape[1] if pool is None else pool.NUM_TOKENS
        fused = torch.zeros(
            (batch_size, count, 2 * sum(self.adapter.widths)),
            device=device,
            dtype=getattr(torch, self.config.runtime.precision),
            requires_grad=True,
        )
        latents = torch.zeros(
            (batch_size, self.unet.config.in_channels, *self.latent_shape[1:]),
            device=device,
            dtype=dtype,
        )
        self.unet(
            latents,
            torch.zeros(batch_size, dtype=torch.long, device=device),
            text,
            cross_attention_kwargs={
                "semantic": self.adapter.split(fused),
                "semantic_scale": self.config.sga.scale,
            },
        ).sample.float().sum().backward()

    def _latents(
        self, features: Features, noise: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Latents sampled from the VAE's posterior with the given noise."""
        mean, std = features.latent_mean.to(self.device), features.latent_std.to(self.device)
        return (mean + std * noise.to(self.device)) * self.vae.config.scaling_factor

    def _empty_text(self) -> Float[Tensor, "1 token dim"]:
        """Replacement of a dropped target text."""
        if self._no_text is None:
            self._no_text = embed_text(self.text_encoder, self.tokenizer, [""])
        return self._no_text
