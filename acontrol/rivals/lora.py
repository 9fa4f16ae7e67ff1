"""A LoRA of the base's attention: what practitioners try first (Hu et al., 2021).

Low-rank matrices beside the U-Net's attention projections learn the training defects from their
captions, with the base's own objective; no reference is read. PEFT holds the matrices, and the
file is the one that every diffusers pipeline loads.
"""

from collections.abc import Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from acontrol.errors import UserError
from acontrol.networks.load import BaseModels
from acontrol.pipelines.blending import Canvas
from acontrol.pipelines.denoising import NoisePredictor
from acontrol.rivals.diffusion import DiffusionMethod
from acontrol.rivals.task import Task

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name.
_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
_PREFIX = "unet."


def require(option: str) -> None:
    """Check that PEFT is installed.

    Raises:
        UserError: If it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{option}: PEFT, which holds the LoRA, is not installed; "
            "pip install 'acontrol[rivals]'"
        ) from error


def add_matrices(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Put trainable matrices beside a frozen U-Net's attention; they begin as zero.

    Args:
        unet: The U-Net, changed in place.
        rank: Of each pair, and its alpha.
        seed: Of one matrix of each pair; the other is zero.
    """
    from peft import LoraConfig

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_LAYERS))


def matrices(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The matrices by the names of diffusers' files."""
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(unet)
    return {f"{_PREFIX}{name}": value.cpu().contiguous() for name, value in state.items()}


class Lora(DiffusionMethod):
    """Draws with a base whose U-Net has learnt from captions."""

    name = "lora"

    def __init__(
        self,
        base: BaseModels,
        resolution: int,
        crop: float,
        weights: Mapping[str, Tensor],
        limit: int | None = None,
    ):
        """Add the matrices to the U-Net's own; as ``DiffusionMethod`` otherwise."""
        super().__init__(base, resolution, crop, limit)
        base.unet.load_lora_adapter(dict(weights), prefix=_PREFIX.removesuffix("."))
        base.unet.fuse_lora()
        base.unet.unload_lora()

    def predictor(
        self, tasks: Sequence[Task], canvas: Canvas, seeds: list[torch.Generator]
    ) -> NoisePredictor:
        """The U-Net on the target texts."""
        scale = tasks[0].sampling.guidance_scale
        text = self.texts([task.prompt for task in tasks])
        empty = self.texts([""]).expand_as(text)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            return self.noise_in(latents, timestep, canvas, text, empty, scale)

        return predict
