"""The frozen base models: Stable Diffusion 1.5 and BLIP-2, from folders or pinned hub ids."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
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

from acontrol import hub
from acontrol.config import BUILT_IN, BaseConfig
from acontrol.errors import UserError
from acontrol.inpainting import is_inpainting

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


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
        """Channels of a latent, and how many pixels a latent's side stands for."""
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
        device: Where they go.
        dtype: Of their weights; the Q-Former, in which ASEA differentiates, stays in float32.

    Raises:
        UserError: If a folder or part is missing, or a hub id has no pinned revision or
            cannot be had.
    """
    path, vlm_path, vlm_folder = resolve(config)
    hub.fetch(config)
    variant = {"variant": config.variant} if config.variant else {}
    source = {"revision": config.revision} if config.revision else {}
    vlm_source = {"revision": config.vlm_revision} if config.vlm_revision else source
    if vlm_folder:
        vlm_source = {**vlm_source, "subfolder": vlm_folder}

    def frozen(kind: Any, where: str, **options: Any) -> Any:
        # The files' own precision, float16 as a rule, is for storage. diffusers and
        # transformers spell the option differently.
        name = "torch_dtype" if issubclass(kind, diffusers.ModelMixin) else "dtype"
        model, report = kind.from_pretrained(
            where, use_safetensors=True, output_loading_info=True, **{name: dtype}, **options
        )
        # A layer that silently started at random would differ from process to process.
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise ValueError(f"the weights of {kind.__name__} lack {missing}")
        return model.eval().requires_grad_(False).to(device)

    def part(name: str) -> dict[str, str]:
        return {**source, "subfolder": name}

    try:
        models = BaseModels(
            vae=frozen(AutoencoderKL, path, **part("vae"), **variant),
            text_encoder=frozen(CLIPTextModel, path, **part("text_encoder"), **variant),
            tokenizer=CLIPTokenizer.from_pretrained(path, **part("tokenizer")),
            unet=frozen(UNet2DConditionModel, path, **part("unet"), **variant),
            scheduler=DDPMScheduler.from_pretrained(path, **part("scheduler")),
            vlm=frozen(Blip2ForImageTextRetrieval, vlm_path, **vlm_source),
            vlm_tokenizer=AutoTokenizer.from_pretrained(vlm_path, **vlm_source),
        )
        is_inpainting(models.unet)  # Or refused here.
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        places = path if vlm_folder else f"{path} and {vlm_path}"
        raise UserError(f"base models at {places} do not load: {reason}") from error
    models.vlm.qformer.float()
    models.vlm.embeddings.float()
    models.vlm.query_tokens.data = models.vlm.query_tokens.data.float()
    if models.scheduler.config.prediction_type != "epsilon":
        raise UserError(
            f"{path}: the scheduler predicts {models.scheduler.config.prediction_type!r}; "
            "acontrol trains on noise prediction ('epsilon'), as Stable Diffusion 1.5 does"
        )
    return models


def resolve(config: BaseConfig) -> tuple[str, str, str]:
    """Say where the models are: (base, vision-language model, its subfolder or "").

    Raises:
        UserError: As ``load_base``.
    """
    path = str(built_in_base()) if config.path == BUILT_IN else config.path
    if os.path.isdir(path):
        missing = [part for part in PARTS if not os.path.isdir(os.path.join(path, part))]
        if missing:
            raise UserError(
                f"base.path {path}: no folder {', '.join(missing)}; a Stable Diffusion 1.5 in "
                f"diffusers' layout holds {', '.join(PARTS)}"
            )
    else:
        _require_pinned("base.path", path, config.revision)
    if config.vlm_path is None:
        if os.path.isdir(path) and not os.path.isdir(os.path.join(path, "vlm")):
            raise UserError(
                f"base.path {path} has no folder vlm: name a BLIP-2 with --base.vlm-path"
            )
        return path, path, "vlm"
    if not os.path.isdir(config.vlm_path):
        _require_pinned("base.vlm-path", config.vlm_path, config.vlm_revision)
    return path, config.vlm_path, ""


def _require_pinned(option: str, path: str, revision: str | None) -> None:
    if not hub.is_hub_id(path):
        raise UserError(f"{option} {path}: no such folder")
    if revision is None:
        name = option.replace("path", "revision")
        raise UserError(
            f"{option} {path}: no such folder, and as a hub id it needs a pinned commit: "
            f"add --{name} COMMIT, or name a local folder"
        )


def digest(config: BaseConfig) -> str:
    """Sha256 that names the base models: by their files' contents, or by hub id and commit."""
    path, vlm_path, vlm_folder = resolve(config)
    total = hashlib.sha256()
    if config.variant is not None:
        total.update(f"variant {config.variant}\n".encode())
    folders = [(part, Path(path, part)) for part in PARTS]
    folders.append(("vlm", Path(vlm_path, vlm_folder)))
    for part, folder in folders:
        if not folder.is_dir():
            total.update(
                f"{part}\0{path}@{config.revision} {vlm_path}@{config.vlm_revision}\n".encode()
            )
            continue
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".safetensors", ".json", ".txt"):
                name = f"{part}/{file.relative_to(folder).as_posix()}"
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


def quieten() -> None:
    """Switch off the libraries' own loading bars, for commands that show theirs.

    And transformers' word on torchvision, which no picture here goes through; it comes when
    diffusers' pipelines are imported, so call this before.
    """
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def built_in_base() -> Path:
    """The folder of the built-in tiny base, which ships with the package."""
    return Path(__file__).parent / "assets" / "tiny-base"


def built_in_adapter() -> Path:
    """The folder of the adapter that ships with the built-in base."""
    return Path(__file__).parent / "assets" / "tiny-adapter"
