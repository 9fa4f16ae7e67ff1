"""Masks drawn by the frozen base: textual inversion, one embedding per category and defect.

As in AnomalyDiffusion (Hu et al., 2024), masks are pictures, and a few vectors in place of
words learn, by the base's own objective, to make it draw such pictures. Nothing else is
trained.

Departures, without which a small base draws blots: a mask is dark on light grey, like defects
in photographs, not white on black; the vectors start as the words of the defect's caption; and
the training masks are moved, rotated, scaled, flipped and bent.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from acontrol.errors import UserError
from acontrol.masks.placement import Placed, Rules, place
from acontrol.masks.real import RealMasks
from acontrol.masks.shape import Mask
from acontrol.method.diffusion import denoising_loss, draw, timestep_weights
from acontrol.method.encoder import embed_text
from acontrol.networks.load import BaseModels
from acontrol.seeding import derive_seed

# Levels of a mask's picture in [-1, 1], outside and inside.
_OUTSIDE, _INSIDE = 0.6, -0.6
_THRESHOLD = 0.8  # Of the way from outside to inside (AnomalyDiffusion's).
_MASK_WEIGHT = 3.0  # Extra weight of latents at the mask, or small masks vanish.
_CHUNK = 16  # Pictures encoded together.


class MaskWords(nn.Module):
    """The learned vectors for a defect's masks in the base's prompt.

    Attributes:
        vectors: (vector, dim) float32, in the space of token embeddings.
    """

    def __init__(self, vectors: Float[Tensor, "vector dim"]):
        """Start from a copy of these vectors."""
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone().float())

    @classmethod
    def of_caption(cls, base: BaseModels, caption: str, count: int) -> "MaskWords":
        """Start from a caption's token embeddings, repeated up to ``count``.

        Raises:
            UserError: If the base's prompt is too short for them.
        """
        room = base.tokenizer.model_max_length - 2  # Begin and end.
        if count > room:
            raise UserError(f"--vectors {count}: the base reads {room} at most")
        ids = base.tokenizer(caption, add_special_tokens=False, return_tensors="pt").input_ids
        repeated = ids[0].repeat(1 + count // ids.shape[1])[:count]
        embedding = base.text_encoder.get_input_embeddings().weight
        return cls(embedding[repeated.to(embedding.device)].detach())


def embed_vectors(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, vectors: Float[Tensor, "vector dim"]
) -> Float[Tensor, "1 token dim"]:
    """Encode vectors as if they were a prompt's words."""
    count = len(vectors)

    def insert(module: nn.Module, args: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        words = vectors[None].to(embedded.dtype)
        # The start token, the vectors, then the empty prompt's end tokens.
        return torch.cat([embedded[:, :1], words, embedded[:, 1:-count]], dim=1)

    handle = text_encoder.get_input_embeddings().register_forward_hook(insert)
    try:
        return embed_text(text_encoder, tokenizer, [""])
    finally:
        handle.remove()


def picture_side(base: BaseModels) -> int:
    """Side of the base's pictures in pixels."""
    return int(base.unet.config.sample_size * base.latent_shape[1])


class MaskObjective:
    """The base's noise-prediction loss on pictures of one defect's masks."""

    def __init__(self, base: BaseModels, masks: Mapping[str, Mask], *, pool: int, seed: int):
        """Vary the training masks within their own range, and encode the pictures.

        Args:
            base: The frozen networks.
            masks: Training masks by name, each as large as its image and not empty.
            pool: Number of pictures.
            seed: Seed of the variations.
        """
        self.base = base
        self.weights = timestep_weights(base.scheduler.alphas_cumprod, "late")
        side = picture_side(base)
        pictures = _varied(masks, side, int(base.unet.config.sample_size), pool, seed)
        with torch.no_grad():
            latents = [self._encode(part) for part in pictures.split(_CHUNK)]
        self.latents = torch.cat(latents)
        touched = F.adaptive_max_pool2d(pictures, self.latents.shape[-1])
        # A latent also depends on its neighbours' pixels.
        self.region = F.max_pool2d(touched, 3, stride=1, padding=1)

    def _encode(self, pictures: Float[Tensor, "batch 1 height width"]) -> Tensor:
        vae = self.base.vae
        levels = (_OUTSIDE + (_INSIDE - _OUTSIDE) * pictures).expand(-1, 3, -1, -1)
        mean = vae.encode(levels.to(vae.device, vae.dtype)).latent_dist.mean
        return (mean.float() * vae.config.scaling_factor).cpu()

    def __call__(
        self, words: MaskWords, seed: int, positions: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Eq. (6) on a batch, a pure function of vectors, seed and positions.

        Args:
            words: The vectors.
            seed: The run's seed.
            positions: The samples' positions in the stream.
        """
        base, device = self.base, self.base.unet.device
        shape = tuple(self.latents.shape[1:])
        drawn = draw(seed, positions, (shape[0], shape[1], shape[2]), len(self.weights))
        numbers = [derive_seed(seed, "mask", at) % len(self.latents) for at in positions]
        noisy = base.scheduler.add_noise(self.latents[numbers], drawn.noise, drawn.timesteps)
        text = embed_vectors(base.text_encoder, base.tokenizer, words.vectors)
        noise_pred = base.unet(
            noisy.to(device, base.unet.dtype),
            drawn.timesteps.to(device),
            text.expand(len(positions), -1, -1),
        ).sample
        region = self.region[numbers].to(device)
        errors = denoising_loss(noise_pred, drawn.noise.to(device), region, _MASK_WEIGHT)
        return (self.weights[drawn.timesteps].to(device) * errors).mean()


@torch.no_grad()
def draw_masks(
    base: BaseModels,
    vectors: Float[Tensor, "vector dim"],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
) -> list[Mask]:
    """Draw one mask (side, side) per seed; some may be empty."""
    scheduler = DDIMScheduler.from_config(
        base.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    pipeline = StableDiffusionPipeline(
        base.vae,
        base.text_encoder,
        base.tokenizer,
        base.unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    text = embed_vectors(base.text_encoder, base.tokenizer, vectors.to(base.unet.device))
    text = text.expand(len(seeds), -1, -1)
    empty = embed_text(base.text_encoder, base.tokenizer, [""])
    images = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=empty.expand_as(text),
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images
    levels = images.float().mean(dim=1) * 2 - 1
    inside = (_OUTSIDE - levels) / (_OUTSIDE - _INSIDE) > _THRESHOLD
    return list(inside.cpu().numpy())


def _varied(
    masks: Mapping[str, Mask], side: int, cells: int, count: int, seed: int
) -> Float[Tensor, "count 1 side side"]:
    """Training masks varied by ``RealMasks``, as float images of 0 and 1."""
    source, everywhere = RealMasks(masks), np.ones((side, side), dtype=bool)
    seeds = [derive_seed(seed, "changed mask", number) for number in range(count)]
    results = [place(source, everywhere, Rules(), cells=cells, seed=seed) for seed in seeds]
    varied = [torch.from_numpy(result.mask) for result in results if isinstance(result, Placed)]
    if not varied:
        raise UserError("none of its training masks fits into a picture of the base's size")
    return torch.stack(varied)[:, None].float()
