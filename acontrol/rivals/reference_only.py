"""ControlNet's reference-only mode: a base without training attends to the reference.

At every step the reference's latents are noised to that step and go through the U-Net too; each
self-attention then reads its keys and values from both, the drawing and the reference (as in
diffusers' examples/community/stable_diffusion_reference.py, without its AdaIN). The
unconditional half of guidance does not see the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from acontrol.data.images import region
from acontrol.networks.inpainting import concat_inpainting_inputs
from acontrol.networks.load import BaseModels
from acontrol.pipelines import blending
from acontrol.pipelines.blending import Canvas
from acontrol.pipelines.denoising import NoisePredictor
from acontrol.rivals.diffusion import DiffusionMethod
from acontrol.rivals.task import Task

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


class ReferenceOnly(DiffusionMethod):
    """Draws with a base's U-Net alone."""

    name = "reference-only"

    def __init__(
        self, base: BaseModels, resolution: int, crop: float, limit: int | None = None
    ):
        """Replace the U-Net's self-attention; arguments as ``DiffusionMethod``."""
        super().__init__(base, resolution, crop, limit)
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

    def predictor(
        self, tasks: Sequence[Task], canvas: Canvas, seeds: list[torch.Generator]
    ) -> NoisePredictor:
        """The U-Net, after it has read the reference at the same noise."""
        base, scale = self.base, tasks[0].sampling.guidance_scale
        references = blending.encode_start(
            base.vae, [_near(task) for task in tasks], self.resolution, base.unet.device
        )
        own = randn_tensor(references.shape, seeds, base.unet.device)
        text = self.texts([task.prompt for task in tasks])
        empty = self.texts([""]).expand_as(text)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            noised = self.scheduler.add_noise(references, own, timestep[None])
            if canvas.masked is not None:  # An inpainting base sees all of the reference.
                nowhere = torch.zeros_like(noised[:, :1])
                noised = concat_inpainting_inputs(noised, nowhere, references)
            self.bank.reading = True
            self.unet(noised, timestep, text)
            self.bank.reading = False
            noise_pred = self.noise_in(latents, timestep, canvas, text, empty, scale)
            self.bank.features.clear()
            return noise_pred

        return predict


def _near(task: Task) -> Image.Image:
    """The reference's defect with its surroundings."""
    image, mask = task.reference()
    return region(Image.fromarray(image), Image.fromarray(mask), _MARGIN)[0]
