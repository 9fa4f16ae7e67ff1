"""Load a method by its name, with all that planning, gate and record need of its networks."""

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import scipy
import torch
from transformers import Blip2ForImageTextRetrieval, CLIPTokenizer

from acontrol.config import AdapterCard, BaseConfig, Precision, TrainedOn
from acontrol.errors import UserError
from acontrol.generation.adapter import AdapterMethod
from acontrol.generation.settings import FITTED, WITH_ADAPTER, MethodName
from acontrol.networks import locate
from acontrol.networks.load import BaseModels, load_base
from acontrol.pipelines.loading import base_of, load_adapter, load_with_digest
from acontrol.rivals.task import Method, digest

_VERSIONS = {lib.__name__: lib.__version__ for lib in (np, PIL, scipy)}
REGION = 4.0  # What a base without an adapter draws, in longest sides of the defect.


@dataclass(frozen=True)
class LoadedMethod:
    """A method, ready to draw.

    Attributes:
        name: Its name.
        method: What draws.
        digest: Sha256 of all that decides its pixels besides plan and machine.
        vlm: Whose vision tower scores its drawings.
        base: The base that draws, or only scores.
        base_digest: Of that base.
        seen: The images that base and adapter come from.
        split: Part of the data for references and masks.
        latent_side: Side of the grid of attention cells.
        resolution: Side of the square that networks see, in pixels.
        dtype: Of the networks.
        card: The adapter's, of a method that draws with it.
        tokenizer: Of the target texts, of a method that reads them.
        read_phrase: Refuses anomaly words that the method cannot read.
        versions: Libraries that draw besides the networks'.
    """

    name: MethodName
    method: Method
    digest: str
    vlm: Blip2ForImageTextRetrieval
    base: BaseConfig
    base_digest: str
    seen: tuple[TrainedOn, ...]
    split: Literal["train", "test", "all"]
    latent_side: int
    resolution: int
    dtype: torch.dtype
    card: AdapterCard | None = None
    tokenizer: CLIPTokenizer | None = None
    read_phrase: Callable[[Sequence[str]], object] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def crop(self) -> float:
        """What is drawn by default: a square of so many longest sides of a defect, 0 is all."""
        return REGION if self.card is None else self.card.target_crop or 0.0


def load_method(
    name: MethodName,
    model: str | None,
    base_path: str | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    fitted: Path | None = None,
) -> LoadedMethod:
    """Load a method.

    Args:
        name: Its name.
        model: A run's output folder or an adapter folder, as a path or URI. Methods that do not
            draw with it take from it the base, the split, the scale of drawing, and the vision
            tower that scores; without it these are the base's own.
        base_path: Where the base is now; without a model the base itself, by default the
            built-in one.
        device: Device of the networks.
        precision: Of the networks.
        fitted: What ``launch.fit`` wrote, of methods that draw with it; the split, the scale of
            drawing and, without a model, the base are then its own.

    Raises:
        UserError: If there is no adapter or base, or it is not one of that method.
    """
    if name in WITH_ADAPTER:
        if model is None:
            raise UserError(f"--method {name} draws with a trained adapter: name its --model")
        return _with_adapter(name, model, base_path, device, precision)
    if name in FITTED:
        if fitted is None:
            raise UserError(f"--method {name} draws with what acontrol fit wrote: name it")
        return _fitted(name, fitted, model, base_path, device, precision)
    card = None
    if model is None:
        base = BaseConfig() if base_path is None else BaseConfig(path=base_path)
        if os.path.isdir(base.path) and not os.path.isdir(os.path.join(base.path, "vlm")):
            raise UserError(
                f"--base-path {base_path} has no folder vlm, whose vision tower scores: put a "
                "BLIP-2 there, or give the --model of an adapter that was trained on that base"
            )
        base_digest = locate.digest(base)
    else:
        _, card, _ = load_adapter(model)
        base, base_digest = base_of(card, model, base_path)
    models = load_base(base, device, getattr(torch, precision))
    factor = models.latent_shape[1]
    side = card.resolution // factor if card else int(models.unet.config.sample_size)
    method = _rival(name, models, side * factor, card)
    return LoadedMethod(
        name,
        method,
        digest(name, method.state, base_digest),
        models.vlm,
        base,
        base_digest,
        (*locate.trained_on(base), *(card.seen if card else ())),
        card.split if card else "train",
        side,
        side * factor,
        models.unet.dtype,
        tokenizer=models.tokenizer if name == "reference-only" else None,
        versions=_VERSIONS if name != "reference-only" else {},
    )


def _fitted(
    name: MethodName,
    folder: Path,
    model: str | None,
    base_path: str | None,
    device: str | torch.device,
    precision: Precision,
) -> LoadedMethod:
    """A method that was fitted to training defects."""
    from acontrol.rivals.fitting import read_fitted

    fitted, weights = read_fitted(folder)
    if fitted.fit.method != name:
        raise UserError(f"--fitted {folder} is of --method {fitted.fit.method}, not {name}")
    base, base_digest = base_of(fitted, folder, base_path, "fitted")
    if model is not None:
        _, card, _ = load_adapter(model)
        if card.base_digest != base_digest:
            raise UserError(
                f"--fitted {folder} is on another base ({fitted.base.path}) than --model "
                f"{model}: give acontrol fit that one's --base"
            )
    models = load_base(base, device, getattr(torch, precision))
    view, limit = (fitted.resolution, fitted.fit.crop), fitted.fit.target_px
    method: Method
    versions = {}
    if name == "lora":
        from acontrol.rivals.lora import Lora, require

        require("--method lora")
        method = Lora(models, *view, weights, limit)
        versions["peft"] = importlib.metadata.version("peft")
    else:
        from acontrol.rivals.anodiff import AnoDiff

        method = AnoDiff(models, *view, weights, fitted.types, limit)
    return LoadedMethod(
        name,
        method,
        digest(name, method.state, base_digest, fitted.weights_sha256),
        models.vlm,
        base,
        base_digest,
        (*locate.trained_on(base), fitted.seen),
        fitted.fit.split,
        fitted.resolution // models.latent_shape[1],
        fitted.resolution,
        models.unet.dtype,
        tokenizer=models.tokenizer,
        versions=versions,
    )


def _with_adapter(
    name: MethodName,
    model: str,
    base_path: str | None,
    device: str | torch.device,
    precision: Precision,
) -> LoadedMethod:
    pipeline, model_digest = load_with_digest(model, base_path, device, precision)
    pipeline.set_progress_bar_config(disable=True)
    card = pipeline.card
    if name == "ip-adapter" and (card.csm.text or card.asea.steps):
        raise UserError(
            f"--method ip-adapter: {model} reads the reference's words too; train one of the "
            "image alone: --csm.no-text --asea.steps 0"
        )
    base, base_digest = base_of(card, model, base_path)
    return LoadedMethod(
        name,
        AdapterMethod(pipeline, name),
        model_digest,
        pipeline.vlm,
        base,
        base_digest,
        (*locate.trained_on(base), *card.seen),
        card.split,
        pipeline.latent_side,
        card.resolution,
        pipeline.unet.dtype,
        card,
        pipeline.tokenizer,
        pipeline.semantics.read,
    )


def _rival(
    name: MethodName, models: BaseModels, resolution: int, card: AdapterCard | None
) -> Method:
    """Imported only where used."""
    match name:
        case "copy-paste":
            from acontrol.rivals.copy_paste import CopyPaste

            return CopyPaste()
        case "perlin":
            from acontrol.rivals.perlin import Perlin

            return Perlin()
        case "cutpaste":
            from acontrol.rivals.cutpaste import CutPaste

            return CutPaste()
        case "procedural":
            from acontrol.rivals.procedural import Procedural

            return Procedural()
        case _:
            from acontrol.rivals.reference_only import ReferenceOnly

            if card is None:
                return ReferenceOnly(models, resolution, REGION)
            return ReferenceOnly(models, resolution, card.target_crop or 0.0, card.target_px)
