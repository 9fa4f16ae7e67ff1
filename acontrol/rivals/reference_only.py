"""ControlNet's reference-only mode: a base without training attends to the reference.

At every step the reference's latents are noised to that step and go through the U-Net too; each
self-attention then reads its keys and values from both, the drawing and the reference (as in
diffusers' examples/community/stable_diffusion_reference.py, without its AdaIN). The
unconditional half of guidance does not see the reference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from acontrol.data.crops import Crop, crops
from acontrol.data.images import pictures, region
from acontrol.masks.shape import Mask
from acontrol.method.encoder import embed_text
from acontrol.networks.inpainting import concat_inpainting_inputs, is_inpainting
from acontrol.networks.load import BaseModels
from acontrol.pipelines import blending
from acontrol.pipelines.compositing import feather_px
from acontrol.pipelines.denoising import ddim, denoise, guided
from acontrol.rivals.task import Drawing, Task

_MARGIN = 1.5  # Around the reference's mask: a square of four times the defect.


class _Bank:
    """What the self-attention layers have read of the reference, by layer."""

    def __init__(self) -> None:
        self.reading = True
        self.features: dict[int, Tensor] = {}


class _SharedAttention:
    """Self-attention that also attends to the reference's features."""

    def __init__(self, bank: _Bank, layer: int):
        self.bank, self.layer = bank, layer
        self.attend = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Keep a reference's features, or attend to those kept; they are the last rows'."""
        if self.bank.reading:
            self.bank.features[self.layer] = hidden_states
            drawn: Tensor = self.attend(attn, hidden_states, None, attention_mask)
            return drawn
        reference = self.bank.features[self.layer]
        first = len(hidden_states) - len(reference)
        shared = torch.cat([hidden_states[first:], reference], dim=1)
        parts = [self.attend(attn, hidden_states[first:], shared, attention_mask)]
        if first:
            parts.insert(0, self.attend(attn, hidden_states[:first], None, attention_mask))
        return torch.cat(parts)


class ReferenceOnly:
    """Draws with a base's U-Net alone."""

    name = "reference-only"

    def __init__(self, base: BaseModels, resolution: int, crop: float):
        """Take a loaded base, whose U-Net is no longer of use to anything else.

        Args:
            base: The networks.
            resolution: Side of the square to draw, in pixels.
            crop: Side of what is drawn in longest sides of the defect; 0 is the whole image.
        """
        self.base, self.resolution, self.crop = base, resolution, crop
        self.scheduler = ddim(base.scheduler.config)
        self.bank = _Bank()
        names = list(base.unet.attn_processors)
        base.unet.set_attn_processor(
            {
                name: _SharedAttention(self.bank, layer)
                if name.endswith("attn1.processor")
                else AttnProcessor2_0()
                for layer, name in enumerate(names)
            }
        )

    @property
    def state(self) -> Mapping[str, Any]:
        """What it was built with; the base's digest names the weights."""
        return {"version": 1, "resolution": self.resolution, "crop": self.crop}

    def crops(self, mask: Mask, crop: float | None) -> list[Crop]:
        """Squares around the components, or the whole image."""
        return crops(mask, self.crop if crop is None else crop, self.resolution)

    def fade_px(self, side: int) -> int:
        """Two of the model's pixels."""
        return feather_px(side, self.resolution)

    @torch.no_grad()
    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Sample each task's latents from its own seed, and decode them."""
        base, sampling = self.base, tasks[0].sampling
        device, vae = base.unet.device, base.vae
        references = blending.encode_start(
            vae, [_near(task) for task in tasks], self.resolution, device
        )
        canvas = blending.encode_canvas(
            vae,
            [Image.fromarray(task.image) for task in tasks],
            [Image.fromarray(task.mask) for task in tasks],
            len(tasks),
            self.resolution,
            device,
            is_inpainting(base.unet),
        )
        seeds = [torch.Generator().manual_seed(task.seed) for task in tasks]
        noise, own = (randn_tensor(references.shape, seeds, device) for _ in range(2))
        # One by one: its neighbours in a batch must not change a text's last bit.
        text = torch.cat([self._text(task.prompt) for task in tasks])
        empty = self._text("").expand_as(text)
        is_guided = sampling.guidance_scale > 1

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            noised = self.scheduler.add_noise(references, own, timestep[None])
            if canvas.masked is not None:  # An inpainting base sees all of the reference.
                nowhere = torch.zeros_like(noised[:, :1])
                noised = concat_inpainting_inputs(noised, nowhere, references)
            self.bank.reading = True
            self._unet(noised, timestep, text)
            self.bank.reading = False
            doubled = torch.cat([latents] * 2) if is_guided else latents
            conditions = torch.cat([empty, text]) if is_guided else text
            noise_pred = self._unet(canvas.unet_input(doubled), timestep, conditions)
            if not is_guided:
                return noise_pred
            return guided(noise_pred, sampling.guidance_scale)

        latents = denoise(predict, self.scheduler, canvas, noise, sampling.steps)
        self.bank.features.clear()
        decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
        drawn = []
        for image, task in zip(pictures(decoded), tasks, strict=True):
            size = (task.image.shape[1], task.image.shape[0])
            drawn.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))
        return [Drawing(pixels) for pixels in drawn]

    def _unet(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        unet = self.base.unet
        noise_pred: Tensor = unet(latents.to(unet.dtype), timestep, text).sample
        return noise_pred.float()

    def _text(self, prompt: str) -> Tensor:
        base = self.base
        return embed_text(base.text_encoder, base.tokenizer, [prompt], base.unet.device)


def _near(task: Task) -> Image.Image:
    """The reference's defect with its surroundings."""
    image, mask = task.reference()
    return region(Image.fromarray(image), Image.fromarray(mask), _MARGIN)[0]
