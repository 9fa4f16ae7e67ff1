"""AnomalyControl: the frozen networks, the adapter, and the training forward (Algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acontrol.config import DropoutConfig, RunConfig
from acontrol.data.features import FeatureBatch, Features
from acontrol.data.stream import Batch
from acontrol.method.condition_dropout import dropped_conditions
from acontrol.method.diffusion import (
    Draw,
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
    """Result of one training forward; per-sample values leave out skipped samples.

    Attributes:
        loss: Sum of Eq. (6) over the batch's size, including skipped samples; carries the
            gradient.
        per_sample: Eq. (6) of each sample, without gradient.
        energy_before: E of Eq. (3) before ASEA.
        energy_after: E after it.
        share: Share of the batch's samples that were not skipped.
    """

    loss: Float[Tensor, ""]
    per_sample: Float[Tensor, " batch"]
    energy_before: Float[Tensor, " batch"]
    energy_after: Float[Tensor, " batch"]
    share: float = 1.0


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

        Samples with dropped C' go through the adapter too, unless ``runtime.skip_dropped``; if
        all are skipped, zeros do. So every rank takes part in every backward pass.

        Args:
            batch: Samples with their references, or their precomputed features.
            project: Replaces the adapter's own forward, for a DeepSpeed engine.
            seed: Of noise and timesteps; by default the run's.
            dropout: Of the conditions; by default the run's.
        """
        device, size = self.device, len(batch.keys)
        with torch.no_grad():
            drawn = draw(
                self.config.seed if seed is None else seed,
                batch.positions,
                self.latent_shape,
                self.scheduler.config.num_train_timesteps,
                moments=self.latent_shape[0] * (2 if self.inpainting else 1),
            )
            drop_text, drop_semantic = dropped_conditions(
                drawn.chance, dropout or self.config.dropout
            )
            rows = torch.arange(size)
            if self.config.runtime.skip_dropped:
                rows = (~drop_semantic).nonzero().flatten()
        if len(rows) == 0:
            return self._zero_loss(project or self.adapter)
        with torch.no_grad():
            if len(rows) < size:
                batch, drawn = _rows_of(batch, rows), _rows_of(drawn, rows)
                drop_text, drop_semantic = drop_text[rows], drop_semantic[rows]
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
            noisy_latents.to(self.unet.dtype),
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
        share = len(per_sample) / size
        loss = per_sample.mean() * share
        before, after = features.energy_before.to(device), features.energy_after.to(device)
        return Losses(loss, per_sample.detach(), before, after, share)

    def _zero_loss(self, project: Callable[[Tensor], Tensor]) -> Losses:
        """For a batch with all samples skipped: a zero loss that reaches the adapter."""
        queries = self.vlm.query_tokens
        empty = queries.new_zeros(0)
        return Losses((0 * project(torch.zeros_like(queries))).sum(), empty, empty, empty, 0.0)

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


Rows = TypeVar("Rows", Batch, FeatureBatch, Batch | FeatureBatch, Draw)


def _rows_of(samples: Rows, rows: Tensor) -> Rows:
    """Some of the samples, by index."""
    selected: dict[str, Any] = {}
    for entry in fields(samples):
        value = getattr(samples, entry.name)
        selected[entry.name] = (
            value[rows] if isinstance(value, Tensor) else [value[row] for row in rows.tolist()]
        )
    return replace(samples, **selected)
