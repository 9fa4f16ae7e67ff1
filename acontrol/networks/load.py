"""Load the frozen base models, Stable Diffusion 1.5 and BLIP-2; safetensors only."""

import logging
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    Blip2ForImageTextRetrieval,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)

from acontrol.config import BaseConfig
from acontrol.errors import UserError, one_line
from acontrol.networks import hub, locate
from acontrol.networks.inpainting import is_inpainting


@dataclass(frozen=True)
class BaseModels:
    """The frozen networks, in evaluation mode and without gradients.

    The noise schedule is the training one (DDPM); the pipeline derives its sampler from it.
    """

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    vlm: Blip2ForImageTextRetrieval
    vlm_tokenizer: PreTrainedTokenizerBase

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Channels of the latents, and pixels per latent."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.vae.config.latent_channels, factor


def load_base(
    config: BaseConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BaseModels:
    """Load every frozen network, safetensors only.

    Args:
        config: Where the models are.
        device: Device for the networks.
        dtype: Of their weights; the Q-Former, which ASEA differentiates, stays in float32.

    Raises:
        UserError: If a folder or part is missing, or a hub id has no pinned revision or
            cannot be downloaded.
    """
    path, vlm_path, vlm_folder = locate.resolve(config)
    hub.fetch(config)
    variant = {"variant": config.variant} if config.variant else {}
    source = {"revision": config.revision} if config.revision else {}
    vlm_source = {"revision": config.vlm_revision} if config.vlm_revision else source
    if vlm_folder:
        vlm_source = {**vlm_source, "subfolder": vlm_folder}

    def frozen(model_class: Any, source: str, dtype: torch.dtype, **options: Any) -> Any:
        # The files' own precision, mostly float16, is for storage. diffusers and
        # transformers spell the option differently.
        name = "torch_dtype" if issubclass(model_class, diffusers.ModelMixin) else "dtype"
        model, report = model_class.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, **{name: dtype}, **options
        )
        # A randomly initialized layer would differ between processes.
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise ValueError(f"the weights of {model_class.__name__} lack {missing}")
        return model.eval().requires_grad_(False)

    def part(name: str) -> dict[str, str]:
        return {**source, "subfolder": name}

    try:
        models = BaseModels(
            vae=frozen(AutoencoderKL, path, dtype, **part("vae"), **variant),
            text_encoder=frozen(CLIPTextModel, path, dtype, **part("text_encoder"), **variant),
            tokenizer=CLIPTokenizer.from_pretrained(path, **part("tokenizer")),
            unet=frozen(UNet2DConditionModel, path, dtype, **part("unet"), **variant),
            scheduler=DDPMScheduler.from_pretrained(path, **part("scheduler")),
            # In float32, since a Q-Former that was rounded cannot be restored.
            vlm=frozen(Blip2ForImageTextRetrieval, vlm_path, torch.float32, **vlm_source),
            vlm_tokenizer=AutoTokenizer.from_pretrained(vlm_path, **vlm_source),
        )
        is_inpainting(models.unet)  # Checks the number of channels.
        check_padding(models.vlm_tokenizer)
    except (OSError, ValueError, SafetensorError) as error:
        places = path if vlm_folder else f"{path} and {vlm_path}"
        raise UserError(
            f"base models at {places} do not load: {one_line(error, 1000)}"
        ) from error
    for name, part_of_vlm in models.vlm.named_children():
        if name not in ("qformer", "embeddings"):
            part_of_vlm.to(dtype)
    for network in (models.vae, models.text_encoder, models.unet, models.vlm):
        network.to(device)
    if models.scheduler.config.prediction_type != "epsilon":
        raise UserError(
            f"{path}: the scheduler predicts {models.scheduler.config.prediction_type!r}; "
            "acontrol trains on noise prediction ('epsilon'), as Stable Diffusion 1.5 does"
        )
    return models


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that texts start at the same place in every row, by which their words are found.

    Raises:
        ValueError: If the tokenizer pads on the left.
    """
    if tokenizer.padding_side != "right":
        raise ValueError(
            f"the tokenizer of the vision-language model pads on the {tokenizer.padding_side}; "
            "set padding_side to 'right' in its tokenizer_config.json, as BLIP-2's"
        )


def quieten() -> None:
    """Switch off the libraries' loading bars, for commands that show their own.

    And transformers' warning about torchvision, which is not used here; it comes when
    diffusers' pipelines are imported, so call this before. And diffusers' warning of layers to
    keep in float32 where it names none.
    """
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_not_harmless)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def _not_harmless(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()
