"""What methods on a frozen base share: noise on a canvas, denoised and decoded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from acontrol.data.crops import Crop, crops
from acontrol.data.images import pictures
from acontrol.masks.shape import Mask
from acontrol.method.encoder import embed_text
from acontrol.networks.inpainting import is_inpainting
from acontrol.networks.load import BaseModels
from acontrol.pipelines import blending
from acontrol.pipelines.blending import Canvas
from acontrol.pipelines.compositing import feather_px
from acontrol.pipelines.denoising import NoisePredictor, ddim, denoise, guided, scheduler_of
from acontrol.rivals.task import Drawing, Task


class DiffusionMethod(ABC):
    """Draws with a base, in the squares and with the blended latents of our own method."""

    name: str

    def __init__(
        self, base: BaseModels, resolution: int, crop: float, limit: int | None = None
    ):
        """Take a loaded base, whose U-Net is no longer of use to anything else.

        Args:
            base: The networks.
            resolution: Side of the square to draw, in pixels.
            crop: Side of what is drawn in longest sides of the defect; 0 is the whole image.
            limit: Largest side of it in pixels; None for any.
        """
        self.base, self.resolution, self.crop, self.limit = base, resolution, crop, limit
        self.scheduler = ddim(base.scheduler.config)

    @property
    def state(self) -> Mapping[str, Any]:
        """What it was built with; the base's digest names the weights."""
        limit = {} if self.limit is None else {"limit": self.limit}
        return {"version": 1, "resolution": self.resolution, "crop": self.crop, **limit}

    @abstractmethod
    def predictor(
        self, tasks: Sequence[Task], canvas: Canvas, seeds: list[torch.Generator]
    ) -> NoisePredictor:
        """What predicts the noise of a batch, guided, in float32.

        Args:
            tasks: The batch.
            canvas: Its normal images and masks.
            seeds: Of each task, after its latents' noise was drawn.
        """

    def crops(self, mask: Mask, crop: float | None) -> list[Crop]:
        """Squares around the components, or the whole image."""
        side = self.crop if crop is None else crop
        return crops(mask, side, self.resolution, self.limit)

    def fade_px(self, side: int) -> int:
        """Two of the model's pixels."""
        return feather_px(side, self.resolution)

    @torch.no_grad()
    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Sample each task's latents from its own seed, and decode them."""
        base = self.base
        device, vae = base.unet.device, base.vae
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
        channels, factor = base.latent_shape
        side = self.resolution // factor
        noise = randn_tensor((len(tasks), channels, side, side), seeds, device)
        predict = self.predictor(tasks, canvas, seeds)
        sampling = tasks[0].sampling
        scheduler = scheduler_of(sampling.solver, self.scheduler)
        latents = denoise(predict, scheduler, canvas, noise, sampling.steps)
        decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
        drawn = []
        for image, task in zip(pictures(decoded), tasks, strict=True):
            size = (task.image.shape[1], task.image.shape[0])
            drawn.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))
        return [Drawing(pixels) for pixels in drawn]

    def noise_in(
        self,
        latents: Tensor,
        timestep: Tensor,
        canvas: Canvas,
        text: Tensor,
        empty: Tensor,
        guidance_scale: float,
    ) -> Tensor:
        """The U-Net's prediction with classifier-free guidance, where the scale asks for it.

        Args:
            latents: (batch, channel, side, side).
            timestep: The step.
            canvas: Of an inpainting base.
            text: (batch, token, dim), the conditions.
            empty: The same without them.
            guidance_scale: 1 is none.
        """
        if guidance_scale <= 1:
            return self.unet(canvas.unet_input(latents), timestep, text)
        doubled = canvas.unet_input(torch.cat([latents] * 2))
        return guided(self.unet(doubled, timestep, torch.cat([empty, text])), guidance_scale)

    def unet(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The plain prediction, in float32."""
        unet = self.base.unet
        noise_pred: Tensor = unet(latents.to(unet.dtype), timestep, text).sample
        return noise_pred.float()

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(prompt, token, dim); one by one, since neighbours could change a text's last bit."""
        base = self.base
        return torch.cat(
            [
                embed_text(base.text_encoder, base.tokenizer, [prompt], base.unet.device)
                for prompt in prompts
            ]
        )
