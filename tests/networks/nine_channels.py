"""A tiny inpainting base: the built-in one with five more input channels."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from acontrol.networks.locate import built_in_base


def write_inpainting_base(folder: Path) -> Path:
    """Copy the built-in base; the new channels' weights are random and matter."""
    shutil.copytree(built_in_base(), folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = weights["conv_in.weight"]
    generator = torch.Generator().manual_seed(3)
    more = torch.randn(len(first), 5, *first.shape[2:], generator=generator)
    weights["conv_in.weight"] = torch.cat([first, (0.2 * more).to(first.dtype)], dim=1)
    save_file(weights, file, {"format": "pt"})
    return folder
