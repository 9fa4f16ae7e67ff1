"""AnomalyControl: the frozen networks, the adapter, and the training forward (Algorithm 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from acontrol.base import BaseModels
from acontrol.config import DropoutConfig, RunConfig
from acontrol.csm import CrossModalEncoder
from acontrol.data.stream import Batch
from acontrol.diffusion import (
    Draw,
    denoising_loss,
    draw,
    dropped_conditions,
    timestep_weights,
)
from acontrol.sga import SemanticAdapter, install_processors


@dataclass(frozen=True)
class Losses:
    """What one training forward yields; values a sample leave out the skipped ones.

    Attributes:
        loss: Sum of Eq. (6) over the batch's size, skipped samples counted; carries the
            gradient.
        per_sample: Eq. (6) of each sample, without gradient.
        energy_before: E of Eq. (3) before ASEA.
        energy_after: E after it.
        share: Of the batch's samples, those that were not skipped.
    """

    loss: Float[Tensor, ""]
    per_sample: Float[Tensor, " batch"]
    energy_before: Float[Tensor, " batch"]
    energy_after: Float[Tensor, " batch"]
    share: float = 1.0


class AnomalyControl(nn.Module):
    """The assembly. Only ``adapter`` has gradients."""

    def __init__(self, base: BaseModels, adapter: SemanticAdapter, config: RunConfig):
        """Install the adapter's attention processors into the base's U-Net."""
        super().__init__()
        self.vae, self.text_encoder, self.unet = base.vae, base.text_encoder, base.unet
        self.vlm = base.vlm
        self.tokenizer, self.scheduler = base.tokenizer, base.scheduler
        self.adapter = adapter
        self.config = config
        self.semantics = CrossModalEncoder(
            base.vlm, base.vlm_tokenizer, config.csm, config.asea
        )
        channels, factor = base.latent_shape
        side = config.data.resolution // factor
        self.latent_shape = (channels, side, side)
        weights = timestep_weights(base.scheduler.alphas_cumprod, config.optim.loss_weighting)
        self.timestep_weights = weights.to(base.unet.device)
        install_processors(self.unet)

    @property
    def device(self) -> torch.device:
        """Where the frozen networks are."""
        return self.vae.device

    def forward(
        self,
        batch: Batch,
        project: Callable[[Tensor], Tensor] | None = None,
        *,
        seed: int | None = None,
        dropout: DropoutConfig | None = None,
    ) -> Losses:
        """Compute Eq. (6) on one batch.

        A sample whose C' is dropped goes through the adapter too, unless
        ``runtime.skip_dropped``; and if all are skipped, zeros go: so every rank takes part in
        every backward, however its draws fall.

        Args:
            batch: Samples with their references.
            project: Stands in for the adapter's own forward, as a DeepSpeed engine does.
            seed: Of noise and timesteps; by default the run's.
            dropout: Of conditions; by default the run's.
        """
        device, size = self.device, len(batch.keys)
        with torch.no_grad():
            drawn = draw(
                self.config.seed if seed is None else seed,
                batch.positions,
                self.latent_shape,
                self.scheduler.config.num_train_timesteps,
            )
            drop_text, drop_semantic = dropped_conditions(
                drawn.chance, dropout or self.config.dropout
            )
            rows = torch.arange(size)
            if self.config.runtime.skip_dropped:
                rows = (~drop_semantic).nonzero().flatten()
        if len(rows) == 0:
            return self._nothing(project or self.adapter)
        with torch.no_grad():
            if len(rows) < size:
                batch, drawn = _rows_of(batch, rows), _rows_of(drawn, rows)
                drop_text, drop_semantic = drop_text[rows], drop_semantic[rows]
            latents = self.encode_image(batch.image, drawn.posterior_noise)
            noise, timesteps = drawn.noise.to(device), drawn.timesteps.to(device)
            noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
            captions = [
                "" if dropped else caption
                for caption, dropped in zip(batch.caption, drop_text.tolist(), strict=True)
            ]
            text = embed_text(self.text_encoder, self.tokenizer, captions)
            semantic = self.semantics(
                batch.reference_image, batch.reference_phrase, batch.reference_mask
            )
            kept = ~drop_semantic.to(device)[:, None, None]
            tokens = semantic.tokens * kept
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
        per_sample = denoising_loss(noise_pred, noise) * self.timestep_weights[timesteps]
        share = len(per_sample) / size
        loss = per_sample.mean() * share
        return Losses(
            loss, per_sample.detach(), semantic.energy_before, semantic.energy_after, share
        )

    def _nothing(self, project: Callable[[Tensor], Tensor]) -> Losses:
        """A batch of which every sample is skipped: a loss of zero that reaches the adapter."""
        queries = self.semantics.vlm.query_tokens
        none = queries.new_zeros(0)
        return Losses((0 * project(torch.zeros_like(queries))).sum(), none, none, none, 0.0)

    @torch.no_grad()
    def encode_image(
        self,
        image: Float[Tensor, "batch 3 pixel pixel"],
        posterior_noise: Float[Tensor, "batch channel height width"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Sample the VAE's latent of an image in [-1, 1], with the given noise."""
        posterior = self.vae.encode(image.to(self.vae.device, self.vae.dtype)).latent_dist
        noise = posterior_noise.to(posterior.mean.device)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor


Rows = TypeVar("Rows", Batch, Draw)


def _rows_of(samples: Rows, rows: Tensor) -> Rows:
    """Some of the samples, by place."""
    chosen: dict[str, Any] = {}
    for one in fields(samples):
        value = getattr(samples, one.name)
        whole = isinstance(value, Tensor)
        chosen[one.name] = value[rows] if whole else [value[row] for row in rows.tolist()]
    return replace(samples, **chosen)


def embed_text(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: Sequence[str]
) -> Float[Tensor, "batch token dim"]:
    """CLIP's last hidden states, padded and cut to the tokenizer's length."""
    ids = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    return text_encoder(ids.to(text_encoder.device)).last_hidden_state
