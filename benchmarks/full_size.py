"""Stable Diffusion 1.5 and BLIP-2 at their real shapes, with random weights.

Times and memory are those of the real weights; the images are noise.
"""

import torch
from diffusers import DDPMScheduler

from acontrol.config import BaseConfig
from acontrol.networks.load import BaseModels, load_base
from acontrol.networks.shapes import BLIP2_ITM, SD15, shapes_of


def random_sd15(device: str, dtype: torch.dtype) -> BaseModels:
    """The whole base, frozen; tokenizers are the built-in base's, whose ids all fit."""
    tiny = load_base(BaseConfig())
    shapes = shapes_of(SD15[0], BLIP2_ITM[0])
    assert shapes is not None
    torch.manual_seed(0)
    for module in (shapes.vae, shapes.text_encoder, shapes.unet, shapes.vlm):
        module.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        for name, weight in module.named_parameters():
            # Norms scale by one; everything else keeps its input's size, about.
            if weight.ndim < 2:
                weight.data.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            else:
                weight.data.normal_(std=weight[0].numel() ** -0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1], device=device)[None])
            else:
                raise ValueError(f"do not know how to fill {name}")
    shapes.vlm.qformer.float()
    shapes.vlm.embeddings.float()
    shapes.vlm.query_tokens.data = shapes.vlm.query_tokens.data.float()
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    return BaseModels(
        vae=shapes.vae,
        text_encoder=shapes.text_encoder,
        tokenizer=tiny.tokenizer,
        unet=shapes.unet,
        scheduler=scheduler,
        vlm=shapes.vlm,
        vlm_tokenizer=tiny.vlm_tokenizer,
    )
