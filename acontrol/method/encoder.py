"""The frozen networks' features of a sample, which never change in training.

Pure functions of sample, settings and weights: ``launch.precompute`` stores the results.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from acontrol.config import AseaConfig, CsmConfig
from acontrol.data.features import Features
from acontrol.data.stream import Batch
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.words import warn_if_long
from acontrol.networks.inpainting import is_inpainting, mask_out
from acontrol.networks.load import BaseModels


class FrozenEncoder:
    """VAE, CLIP's text encoder and BLIP-2 with ASEA."""

    def __init__(self, base: BaseModels, csm: CsmConfig, asea: AseaConfig):
        """Set the networks and the settings of C'."""
        self.vae = base.vae
        self.text_encoder, self.tokenizer = base.text_encoder, base.tokenizer
        self.inpainting = is_inpainting(base.unet)
        self.semantics = CrossModalEncoder(base.vlm, base.vlm_tokenizer, csm, asea)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Features:
        """Encode targets, their texts and their references."""
        image = batch.image.to(self.vae.device, self.vae.dtype)
        posterior = self.vae.encode(image).latent_dist
        mean, std = posterior.mean, posterior.std
        if self.inpainting:
            masked = self.vae.encode(mask_out(image, batch.mask.to(image))).latent_dist
            mean, std = torch.cat([mean, masked.mean], 1), torch.cat([std, masked.std], 1)
        semantic = self.semantics(
            batch.reference_image, batch.reference_phrase, batch.reference_mask
        )
        return Features(
            latent_mean=mean,
            latent_std=std,
            latent_mask=F.adaptive_max_pool2d(batch.mask, mean.shape[-2:]),
            text=embed_text(self.text_encoder, self.tokenizer, batch.caption),
            tokens=semantic.tokens,
            energy_before=semantic.energy_before,
            energy_after=semantic.energy_after,
        )


def warn_of_cut(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> None:
    """Warn once if a target text is longer than CLIP reads."""
    # Not verbose: transformers would speak of indexing errors.
    lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False).input_ids]
    warn_if_long("target texts are truncated to", texts, lengths, tokenizer.model_max_length)


def embed_text(
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    texts: Sequence[str],
    device: torch.device | None = None,
) -> Float[Tensor, "batch token dim"]:
    """CLIP's last hidden states, padded and cut to the tokenizer's length.

    ``device`` is where it runs; by default its weights' device, which differs when they are
    offloaded.
    """
    warn_of_cut(tokenizer, texts)
    ids = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    return text_encoder(ids.to(device or text_encoder.device)).last_hidden_state
