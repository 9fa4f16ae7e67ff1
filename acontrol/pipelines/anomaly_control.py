"""Sampling: a target prompt and a reference defect in, an image with that defect out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import (
    Blip2ForImageTextRetrieval,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)

from acontrol.config import AdapterCard, AseaConfig
from acontrol.data.images import fit, pictures, region
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.encoder import embed_text
from acontrol.method.sga import SLICING, SemanticAdapter, check_processors, install_processors
from acontrol.networks.inpainting import check_kind
from acontrol.networks.load import BaseModels
from acontrol.pipelines import blending
from acontrol.pipelines.blending import put_back


@dataclass(frozen=True)
class Conditions:
    """What guides a batch, made once for all its steps.

    Attributes:
        text: (batch, token, dim) embeddings of the target texts.
        semantic: (batch, query, fused) what the adapter makes of C': K' and V' of all layers.
        empty_text: (1, token, dim) of the empty text, for the unconditional branch.
        empty_semantic: (1, query, fused) of C' = 0, as condition dropout trained.
    """

    text: Tensor
    semantic: Tensor
    empty_text: Tensor
    empty_semantic: Tensor


def check_lists(lists: dict[str, Any]) -> None:
    """Raise ValueError unless every list has one entry a prompt and every mask fits."""
    count = len(lists["prompt"])
    if count == 0:
        raise ValueError("need at least one prompt, got an empty list")
    for name, values in lists.items():
        if isinstance(values, str) or (values is not None and len(values) != count):
            raise ValueError(f"need a list of {count} {name}, one a prompt, got {values!r}")
    if (lists["image"] is None) != (lists["mask_image"] is None):
        raise ValueError("image and mask_image go together: give both or neither")
    for one, mask in [
        *zip(lists["reference_image"], lists["reference_mask"], strict=True),
        *zip(lists["image"] or [], lists["mask_image"] or [], strict=True),
    ]:
        if one.size != mask.size:
            raise ValueError(f"an image of {one.size} has a mask of {mask.size}")
        if mask.getbbox() is None:
            raise ValueError("a mask is empty: it must be non-zero where the defect is")


def bits(masks: Sequence[Image.Image]) -> list[Image.Image]:
    """Masks of any mode as 1-bit images: set where any colour channel is above zero."""
    return [Image.fromarray(np.asarray(mask.convert("RGB")).any(axis=2)) for mask in masks]


def seen_by_vlm(
    image: Sequence[Image.Image], mask: Sequence[Image.Image], size: int, card: AdapterCard
) -> tuple[Tensor, Tensor]:
    """References and their masks as the vision tower takes them, in the card's view."""
    pairs = [
        region(one.convert("RGB"), where)
        if card.reference_view == "region"
        else (one.convert("RGB"), where)
        for one, where in zip(image, mask, strict=True)
    ]
    fitted = [fit(*pair, size) for pair in pairs]
    return torch.stack([one for one, _ in fitted]), torch.stack([where for _, where in fitted])


@dataclass
class AnomalyControlOutput(BaseOutput):
    """The images, as PIL."""

    images: list[Image.Image]


class AnomalyControlPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Draw defects from a prompt and a reference.

    With a normal image and a mask the defect is drawn in the mask, and the rest is kept.
    How C' is made and at which size was fixed in training: it is read from the adapter's card.
    """

    model_cpu_offload_seq = "text_encoder->vlm->adapter->unet->vae"
    # Layer by layer its weights are not where ASEA's written-out gradients need them.
    _exclude_from_cpu_offload = ("vlm",)

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        vlm: Blip2ForImageTextRetrieval,
        vlm_tokenizer: PreTrainedTokenizerBase,
        adapter: SemanticAdapter,
    ):
        """Take the parts; ``from_pretrained`` and ``from_base`` call this."""
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            vlm=vlm,
            vlm_tokenizer=vlm_tokenizer,
            adapter=adapter,
        )
        self.card = AdapterCard.model_validate(adapter.config.card)
        check_kind(self.card, unet)
        self.semantics = CrossModalEncoder(vlm, vlm_tokenizer, self.card.csm, self.card.asea)
        install_processors(unet)

    @property
    def latent_side(self) -> int:
        """Side of the square of latents that is drawn."""
        return int(self.card.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1))

    @classmethod
    def load_config(cls, *args: Any, **options: Any) -> Any:
        """``model_index.json``, also of pipelines saved before ``acontrol.method`` existed."""
        config = super().load_config(*args, **options)
        if isinstance(config, dict) and config.get("adapter", [""])[0] == "acontrol.sga":
            config["adapter"] = [SemanticAdapter.__module__, config["adapter"][1]]
        return config

    @classmethod
    def from_base(cls, base: BaseModels, adapter: SemanticAdapter) -> "AnomalyControlPipeline":
        """Assemble from loaded base models, with a DDIM sampler on the base's own schedule."""
        scheduler = DDIMScheduler.from_config(
            base.scheduler.config, clip_sample=False, set_alpha_to_one=False
        )
        return cls(
            base.vae,
            base.text_encoder,
            base.tokenizer,
            base.unet,
            scheduler,
            base.vlm,
            base.vlm_tokenizer,
            adapter,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: Sequence[str],
        reference_image: Sequence[Image.Image],
        reference_mask: Sequence[Image.Image],
        reference_phrase: Sequence[str],
        image: Sequence[Image.Image] | None = None,
        mask_image: Sequence[Image.Image] | None = None,
        *,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        semantic_scale: float | None = None,
        generator: Sequence[torch.Generator] | None = None,
        composite: bool = True,
    ) -> AnomalyControlOutput:
        """Draw one image a prompt.

        Args:
            prompt: Target texts T_t.
            reference_image: Images I_a that show the defect.
            reference_mask: Masks M_A of the same sizes, non-zero on the defect.
            reference_phrase: The anomaly's words, "a crack": T_a without its template.
            image: Normal images to draw on, of any size.
            mask_image: Where to draw, each of its image's size, non-zero inside.
            num_inference_steps: DDIM steps.
            guidance_scale: Classifier-free guidance; at 1 the unconditional pass is left out.
            semantic_scale: Gamma of Eq. (5); by default the one trained with.
            generator: One CPU generator an image: a seed then always gives the same noise,
                whatever the batch around it.
            composite: Keep the normal image's own pixels outside the mask. Without, they went
                through the VAE, which leaks.

        Returns:
            Images: of the normal images' sizes, or of the training resolution without any.

        Raises:
            ValueError: If the arguments' lengths or sizes disagree.
        """
        reference_mask = bits(reference_mask)
        mask_image = None if mask_image is None else bits(mask_image)
        lists = {
            "prompt": prompt,
            "reference_image": reference_image,
            "reference_mask": reference_mask,
            "reference_phrase": reference_phrase,
            "image": image,
            "mask_image": mask_image,
            "generator": generator,
        }
        check_lists(lists)
        if num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps must be at least 1, got {num_inference_steps}"
            )
        conditions = self.conditions(
            self.encode_text(prompt),
            self.encode_reference(reference_image, reference_mask, reference_phrase),
        )
        return self.sample(
            conditions,
            image,
            mask_image,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            semantic_scale=semantic_scale,
            generator=generator,
            composite=composite,
        )

    @torch.no_grad()
    def encode_text(self, prompt: Sequence[str]) -> Tensor:
        """Embed target texts: (batch, token, dim)."""
        return embed_text(self.text_encoder, self.tokenizer, prompt, self._execution_device)

    @torch.no_grad()
    def encode_reference(
        self,
        image: Sequence[Image.Image],
        mask: Sequence[Image.Image],
        phrase: Sequence[str],
        asea: AseaConfig | None = None,
    ) -> Tensor:
        """Make C' of references and K', V' of it: (batch, query, fused).

        The arguments are those of ``reference_tokens``.
        """
        tokens = self.reference_tokens(image, mask, phrase, asea)
        fused: Tensor = self.adapter(tokens.to(self.adapter.dtype))
        return fused

    @torch.no_grad()
    def reference_tokens(
        self,
        image: Sequence[Image.Image],
        mask: Sequence[Image.Image],
        phrase: Sequence[str],
        asea: AseaConfig | None = None,
    ) -> Tensor:
        """Make C' of references: (batch, query, dim).

        Args:
            image: Images I_a.
            mask: 1-bit masks M_A of the same sizes.
            phrase: The anomaly's words.
            asea: Other settings of ASEA than those trained with.
        """
        # Its forward is never called: what model CPU offload hangs there has to be.
        if hasattr(self.vlm, "_hf_hook"):
            self.vlm._hf_hook.pre_forward(self.vlm)
        images, masks = seen_by_vlm(image, mask, self.semantics.image_px, self.card)
        tokens: Tensor = self.semantics(images, phrase, masks, asea).tokens
        return tokens

    @torch.no_grad()
    def conditions(self, text: Tensor, semantic: Tensor) -> Conditions:
        """Put texts and references together with what the unconditional branch sees."""
        config = self.vlm.config
        none = torch.zeros(
            (1, config.num_query_tokens, config.qformer_config.hidden_size),
            dtype=self.adapter.dtype,
            device=semantic.device,
        )
        return Conditions(text, semantic, self.encode_text([""]), self.adapter(none))

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        image: Sequence[Image.Image] | None = None,
        mask_image: Sequence[Image.Image] | None = None,
        *,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        semantic_scale: float | None = None,
        generator: Sequence[torch.Generator] | None = None,
        composite: bool = True,
    ) -> AnomalyControlOutput:
        """Draw a batch whose conditions are known; the arguments are those of a call.

        Masks must be 1-bit and of their images' sizes.
        """
        check_processors(self.unet)
        count, device = len(conditions.text), self._execution_device
        scale = self.card.sga.scale if semantic_scale is None else semantic_scale
        guided = guidance_scale > 1
        text, fused = conditions.text, conditions.semantic
        if guided:
            text = torch.cat([conditions.empty_text.expand_as(text), text])
            fused = torch.cat([conditions.empty_semantic.expand_as(fused), fused])
        semantic = self.adapter.split(fused)
        size, side = self.card.resolution, self.latent_side
        shape = (count, self.vae.config.latent_channels, side, side)
        noise = randn_tensor(shape, list(generator) if generator else None, device)
        drawn_on = blending.prepare(
            self.vae, image, mask_image, count, size, device, self.card.inpainting
        )
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = noise * self.scheduler.init_noise_sigma
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            doubled = torch.cat([latents] * 2) if guided else latents
            noise_pred = self.unet(
                drawn_on.seen(self.scheduler.scale_model_input(doubled, timestep)).to(
                    self.unet.dtype
                ),
                timestep,
                text,
                cross_attention_kwargs={"semantic": semantic, "semantic_scale": scale},
            ).sample.float()  # Latents stay in float32 whatever the networks' precision.
            if guided:
                without, with_conditions = noise_pred.chunk(2)
                noise_pred = without + guidance_scale * (with_conditions - without)
            latents = self.scheduler.step(noise_pred, timestep, latents).prev_sample
            latents = drawn_on.blended(latents, noise, self.scheduler, step)
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        drawn = pictures(self.vae.decode(latents).sample)
        self.maybe_free_model_hooks()
        if image is not None and mask_image is not None:
            drawn = [
                put_back(one, normal, mask if composite else None)
                for one, normal, mask in zip(drawn, image, mask_image, strict=True)
            ]
        return AnomalyControlOutput(images=drawn)

    def set_attention_slice(self, slice_size: int | None) -> None:
        """Refuse attention slicing, as ``enable_attention_slicing`` asks for it.

        Raises:
            ValueError: Always: C' would silently be ignored.
        """
        raise ValueError(SLICING)
