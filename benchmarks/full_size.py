"""Stable Diffusion 1.5 and BLIP-2 at their real shapes, with random weights.

Times and memory are those of the real weights; the images are noise. A product on zeros is
faster than one on numbers, so activations are checked to be like a trained network's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

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
        fill(module)
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


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Random weights that keep the size of their input, about; norms scale by one."""
    for module in network.modules():
        is_norm = isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim >= 2:
                weight.normal_(std=weight[0].numel() ** -0.5)
            else:
                weight.fill_(1.0 if is_norm and name == "weight" else 0.0)


@torch.no_grad()
def spreads(base: BaseModels, side: int, batch: int = 1) -> dict[str, float]:
    """Standard deviations of latents, C', every U-Net block's output and the prediction."""
    device, dtype = base.unet.device, base.unet.dtype
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    found: dict[str, float] = {}
    channels, factor = base.latent_shape
    posterior = base.vae.encode(noise(batch, 3, factor * side, factor * side)).latent_dist
    found["latents"] = float(posterior.mean.float().std())
    reference_px = base.vlm.config.vision_config.image_size
    seen = base.vlm.vision_model(noise(batch, 3, reference_px, reference_px))[0]
    tokens = base.vlm.qformer(
        query_embeds=base.vlm.query_tokens.expand(batch, -1, -1),
        encoder_hidden_states=seen.to(base.vlm.query_tokens.dtype),
    ).last_hidden_state
    found["C'"] = float(tokens.float().std())

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            found[name] = float(first.float().std())

        return hook

    blocks = {
        f"{kind}.{number}": block
        for kind in ("down_blocks", "up_blocks")
        for number, block in enumerate(getattr(base.unet, kind))
    }
    blocks["mid_block"] = base.unet.mid_block
    hooks = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    text = noise(batch, 77, base.unet.config.cross_attention_dim)
    predicted = base.unet(noise(batch, channels, side, side), 500, text).sample
    for hook in hooks:
        hook.remove()
    found["prediction"] = float(predicted.float().std())
    return found


def check_spreads(found: Mapping[str, float]) -> None:
    """Refuse activations of zeros, of infinities or of NaN.

    Raises:
        ValueError: With everything that lies outside .1 to 10.
    """
    wrong = {name: value for name, value in found.items() if not 0.1 <= value <= 10}
    if wrong:
        raise ValueError(f"activations unlike a trained network's: {wrong}")
