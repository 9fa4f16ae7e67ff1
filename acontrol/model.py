"""AnomalyControl: the frozen networks, the adapter, and the training forward (Algorithm 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from acontrol.base import BaseModels
from acontrol.config import DropoutConfig, RunConfig
from acontrol.csm import CrossModalEncoder
from acontrol.data.stream import Batch
from acontrol.diffusion import (
    denoising_loss,
    draw,
    dropped_conditions,
    timestep_weights,
)
from acontrol.sga import SemanticAdapter, install_processors


@dataclass(frozen=True)
class Losses:
    """What one training forward yields, a value a sample but for the loss itself.

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

        Every sample goes through the adapter, also one whose conditions are dropped: so every
        rank takes part in every backward, however its draws fall.

        Args:
            batch: Samples with their references.
            project: Stands in for the adapter's own forward, as a DeepSpeed engine does.
            seed: Of noise and timesteps; by default the run's.
            dropout: Of conditions; by default the run's.
        """
        device = self.device
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
        loss = per_sample.mean()
        return Losses(loss, per_sample.detach(), semantic.energy_before, semantic.energy_after)

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
