"""The architectures of the public checkpoints, built without weights on the meta device.

For counting parameters and memory before anything is downloaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import (
    AutoConfig,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    CLIPTextConfig,
    CLIPTextModel,
)

SD15 = ("stable-diffusion-v1-5/stable-diffusion-v1-5",)
SD15_INPAINTING = ("stable-diffusion-v1-5/stable-diffusion-inpainting",)
BLIP2_ITM = ("Salesforce/blip2-itm-vit-g", "Salesforce/blip2-itm-vit-g-coco")


@dataclass(frozen=True)
class Shapes:
    """The frozen networks on the meta device, without weights."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vlm: Blip2ForImageTextRetrieval


def shapes_of(path: str, vlm_path: str) -> Shapes | None:
    """Shapes of a base in folders or of a known hub id; None for an unknown hub id.

    Args:
        path: The base, as ``locate.resolve`` returns it.
        vlm_path: The folder or hub id of the vision-language model itself.
    """
    with torch.device("meta"):
        if Path(path).is_dir():
            unet = UNet2DConditionModel.from_config(_config(UNet2DConditionModel, path, "unet"))
            vae = AutoencoderKL.from_config(_config(AutoencoderKL, path, "vae"))
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(path, subfolder="text_encoder"))
        elif path in SD15 + SD15_INPAINTING:
            unet, vae, text = _sd15(in_channels=9 if path in SD15_INPAINTING else 4)
        else:
            return None
        if Path(vlm_path).is_dir():
            vlm = Blip2ForImageTextRetrieval(AutoConfig.from_pretrained(vlm_path))
        elif vlm_path in BLIP2_ITM:
            vlm = Blip2ForImageTextRetrieval(blip2_itm_config())
        else:
            return None
    return Shapes(vae, text, unet, vlm)


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def blip2_itm_config() -> Blip2Config:
    """BLIP-2 image-text matching with ViT-g: the classes' defaults, with text input."""
    return Blip2Config(
        vision_config={"num_hidden_layers": 39},
        # One token more than BERT's for [DEC].
        qformer_config={"use_qformer_text_input": True, "vocab_size": 30523},
        num_query_tokens=32,
        image_text_hidden_size=256,
    )


def _sd15(in_channels: int) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=in_channels,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    widths = (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
        )
    )
    return unet, vae, text


def _config(model_class: Any, path: str, part: str) -> Any:
    return model_class.load_config(path, subfolder=part)
