"""The diffusers pipeline: draws the defect of a reference image, guided by a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from acontrol.config.sampling import MOST_STEPS, Solver
from acontrol.data.images import pictures
from acontrol.data.pixels import as_rgb, image_pixels, mask_pixels
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.encoder import embed_text
from acontrol.method.sga import SLICING, SemanticAdapter, check_processors, install_processors
from acontrol.networks.inpainting import check_inpainting
from acontrol.networks.load import BaseModels
from acontrol.pipelines import blending
from acontrol.pipelines.compositing import composited
from acontrol.pipelines.denoising import Watch, ddim, denoise, guided, scheduler_of
from acontrol.pipelines.inputs import check_lists, read_pictures, vlm_inputs


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch, computed once for all steps.

    Attributes:
        text: (batch, token, dim) embeddings of the target texts.
        semantic: (batch, query, fused) the adapter's output: K' and V' of all layers.
        empty_text: (1, token, dim) of the empty text, for the unconditional branch.
        empty_semantic: (1, query, fused) of C' = 0, as in condition dropout.
    """

    text: Tensor
    semantic: Tensor
    empty_text: Tensor
    empty_semantic: Tensor


@dataclass
class AnomalyControlOutput(BaseOutput):
    """The generated images."""

    images: list[Image.Image]


class AnomalyControlPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Draw defects from a prompt and a reference.

    With a normal image and a mask, the defect is drawn in the mask and the rest is kept.
    Settings of C' and the resolution were fixed in training and are read from the adapter.
    """

    model_cpu_offload_seq = "text_encoder->vlm->adapter->unet->vae"
    # ASEA's explicit gradients need all of its weights at once.
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
        """Assemble the pipeline; ``from_pretrained`` and ``from_base`` call this."""
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
        check_inpainting(self.card, unet)
        self.semantics = CrossModalEncoder(vlm, vlm_tokenizer, self.card.csm, self.card.asea)
        install_processors(unet)

    @property
    def latent_side(self) -> int:
        """Side of the square of latents."""
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
        """Assemble from loaded base models, with a DDIM sampler on the base's schedule."""
        scheduler = ddim(base.scheduler.config)
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
        """Draw one image per prompt.

        Args:
            prompt: Target texts T_t.
            reference_image: Images I_a that show the defect, of any mode.
            reference_mask: Masks M_A of the same sizes: black, and one other level on the
                defect.
            reference_phrase: The anomaly's words, "a crack": T_a without its template.
            image: Normal images to draw on, of any size, in the view that was trained: whole,
                or the square of ``card.target_crop`` times the defect, at most
                ``card.target_px`` pixels.
            mask_image: Where to draw, each of its image's size: black, and one other level
                inside.
            num_inference_steps: Steps of the pipeline's scheduler, DDIM.
            guidance_scale: Classifier-free guidance; 1 skips the unconditional pass.
            semantic_scale: Gamma of Eq. (5); by default the one trained with.
            generator: One CPU generator per image: a seed then gives the same noise whatever
                the rest of the batch.
            composite: Keep the normal image's own pixels outside the mask, and its grey if it
                has no colour; otherwise they have gone through the VAE, which is lossy.

        Returns:
            Images of the normal images' sizes, or of the training resolution without them.

        Raises:
            ValueError: If lengths or sizes of the arguments disagree, or an image or mask
                cannot be read without a guess (`acontrol.data.pixels`).
        """
        reference_image = read_pictures(reference_image, "reference_image", image_pixels)
        reference_mask = read_pictures(reference_mask, "reference_mask", mask_pixels)
        if image is not None:
            image = read_pictures(image, "image", image_pixels)
        if mask_image is not None:
            mask_image = read_pictures(mask_image, "mask_image", mask_pixels)
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
        if not 1 <= num_inference_steps <= MOST_STEPS:
            raise ValueError(
                f"num_inference_steps must be 1 to {MOST_STEPS}, got {num_inference_steps}"
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
        """Compute K' and V' from references: (batch, query, fused).

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
        """Compute C' from references: (batch, query, dim).

        Args:
            image: Images I_a.
            mask: 1-bit masks M_A of the same sizes.
            phrase: The anomaly's words.
            asea: ASEA settings; by default those trained with.
        """
        # Its forward, where model CPU offload hooks in, is never called.
        if hasattr(self.vlm, "_hf_hook"):
            self.vlm._hf_hook.pre_forward(self.vlm)
        images, masks = vlm_inputs(image, mask, self.semantics.image_px, self.card)
        tokens: Tensor = self.semantics(images, phrase, masks, asea).tokens
        return tokens

    @torch.no_grad()
    def conditions(self, text: Tensor, semantic: Tensor) -> Conditions:
        """Add the unconditional branch's conditions to texts and references."""
        return Conditions(text, semantic, self.encode_text([""]), self._without_reference(1))

    @torch.no_grad()
    def _without_reference(self, count: int) -> Tensor:
        """K' and V' of C' = 0, as where condition dropout took it away."""
        config = self.vlm.config
        shape = (count, config.num_query_tokens, config.qformer_config.hidden_size)
        device, dtype = self._execution_device, self.adapter.dtype
        fused: Tensor = self.adapter(torch.zeros(shape, device=device, dtype=dtype))
        return fused

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
        start_image: Sequence[Image.Image] | None = None,
        strength: float = 1.0,
        solver: Solver = "ddim",
        watch: Watch | None = None,
    ) -> AnomalyControlOutput:
        """Draw a batch from its conditions; the arguments are those of ``__call__``.

        Masks must be 1-bit and of their images' sizes. ``start_image`` are images in RGB that
        lie under the noise, and ``strength`` in [0, 1] is the share of the steps that are done
        on them. ``solver``, but for "ddim", replaces the pipeline's scheduler on its own
        schedule. ``watch`` sees the latents of each step.
        """
        check_processors(self.unet)
        if image is not None:
            image = [one if one.mode == "RGB" else as_rgb(one) for one in image]
        count, device = len(conditions.text), self._execution_device
        scale = self.card.sga.scale if semantic_scale is None else semantic_scale
        is_guided = guidance_scale > 1
        text, fused = conditions.text, conditions.semantic
        if is_guided:
            text = torch.cat([conditions.empty_text.expand_as(text), text])
            fused = torch.cat([conditions.empty_semantic.expand_as(fused), fused])
        semantic = self.adapter.split(fused)
        size, side = self.card.resolution, self.latent_side
        shape = (count, self.vae.config.latent_channels, side, side)
        noise = randn_tensor(shape, list(generator) if generator else None, device)
        scheduler = scheduler_of(solver, self.scheduler)
        canvas = blending.encode_canvas(
            self.vae, image, mask_image, count, size, device, self.card.inpainting
        )

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            doubled = torch.cat([latents] * 2) if is_guided else latents
            noise_pred: Tensor = self.unet(
                canvas.unet_input(scheduler.scale_model_input(doubled, timestep)).to(
                    self.unet.dtype
                ),
                timestep,
                text,
                cross_attention_kwargs={"semantic": semantic, "semantic_scale": scale},
            ).sample.float()  # Latents stay in float32 whatever the networks' precision.
            return guided(noise_pred, guidance_scale) if is_guided else noise_pred

        start = None
        if start_image is not None:
            start = blending.encode_start(self.vae, start_image, size, device)
        latents = denoise(
            predict,
            scheduler,
            canvas,
            noise,
            num_inference_steps,
            start=start,
            strength=strength,
            progress=self.progress_bar,
            watch=watch,
        )
        drawn = self.decode(latents)
        self.maybe_free_model_hooks()
        if image is not None and mask_image is not None:
            drawn = [
                result.resize(normal.size, Image.Resampling.BICUBIC)
                for result, normal in zip(drawn, image, strict=True)
            ]
            if composite:
                drawn = [
                    composited(result, normal, mask, size)
                    for result, normal, mask in zip(drawn, image, mask_image, strict=True)
                ]
        return AnomalyControlOutput(images=drawn)

    def warm_up(self, count: int) -> None:
        """Draw so many images without a condition, in one step."""
        size = (self.card.resolution, self.card.resolution)
        self.sample(
            self.conditions(self.encode_text([""] * count), self._without_reference(count)),
            [Image.new("RGB", size)] * count,
            [Image.new("1", size, 1)] * count,
            num_inference_steps=1,
            composite=False,
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Clean latents as pictures of the training resolution."""
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return pictures(self.vae.decode(latents).sample)

    def set_attention_slice(self, slice_size: int | None) -> None:
        """Refuse attention slicing.

        Raises:
            ValueError: Always: C' would silently be ignored.
        """
        raise ValueError(SLICING)
