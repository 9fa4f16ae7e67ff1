"""Load a trained adapter as a pipeline, with the base it was trained on."""

import hashlib
import json
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError

from acontrol.config import AdapterCard, BaseConfig, Precision
from acontrol.errors import UserError, explain, one_line
from acontrol.method.sga import SemanticAdapter
from acontrol.networks import locate
from acontrol.networks.checksum import CARD, WEIGHTS, refuse_damaged
from acontrol.networks.load import load_base
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.runs import storage
from acontrol.runs.record import runs_in

# Files of a run's output folder or of an adapter folder that loading needs.
ADAPTER_FILES = ("adapter", "run.json", "config.json", WEIGHTS, CARD)


def load_pipeline(
    model: str,
    base_path: str | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> AnomalyControlPipeline:
    """Load an adapter with the base it was trained on.

    Args:
        model: A run's output folder or an adapter folder, as a path or URI.
        base_path: Where the base is now, if it has moved.
        device: Device of the pipeline.
        precision: Of the networks; the Q-Former stays in float32.

    Raises:
        UserError: If there is no adapter, its config is invalid, or the base is another one.
    """
    return load_with_digest(model, base_path, device, precision)[0]


def load_with_digest(
    model: str,
    base_path: str | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> tuple[AnomalyControlPipeline, str]:
    """``load_pipeline``, with a sha256 that names adapter and base together."""
    adapter, card, weights = load_adapter(model)
    base, base_digest = base_of(card, model, base_path)
    dtype = getattr(torch, precision)
    models = load_base(base, device, dtype)
    pipeline = AnomalyControlPipeline.from_base(models, adapter.eval().to(device, dtype))
    return pipeline, hashlib.sha256(weights + base_digest.encode()).hexdigest()


class MadeOnBase(Protocol):
    """A card that says which base its weights need."""

    @property
    def base(self) -> BaseConfig:
        """The base."""

    @property
    def base_digest(self) -> str:
        """Its digest."""


def base_of(
    card: MadeOnBase, name: object, base_path: str | None, how: str = "trained"
) -> tuple[BaseConfig, str]:
    """The base that weights were made on, where it is now, and its digest.

    Args:
        card: Of the weights.
        name: The weights, for the error.
        base_path: Where the base is now, if it moved.
        how: What was done on it, for the error.

    Raises:
        UserError: If another base is there.
    """
    base = card.base
    if base_path is not None:
        base = base.model_copy(update={"path": base_path})
    base_digest = locate.digest(base)
    if base_digest != card.base_digest:
        raise UserError(
            f"the base at {base.path} is not the one that {name} was {how} on "
            "(other checksum): name the right one with --base-path"
        )
    return base, base_digest


def load_adapter(model: str) -> tuple[SemanticAdapter, AdapterCard, bytes]:
    """The adapter of a run or an adapter folder, its card, and the bytes of its weights file.

    ``tiny`` is the one that ships with the package.

    Raises:
        UserError: If there is no adapter, its config is invalid or its weights are damaged.
    """
    with storage.local_copy(locate.adapter_path(model), ADAPTER_FILES) as folder:
        return _load_adapter(model, folder)


def _load_adapter(model: str, folder: Path) -> tuple[SemanticAdapter, AdapterCard, bytes]:
    if (folder / "adapter" / "config.json").is_file():
        folder = folder / "adapter"
    if (folder / "run.json").is_file():
        raise UserError(f"--model {model}: this run has no checkpoint yet")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--model {model}: neither a run's output folder (adapter/config.json) nor an "
            f"adapter folder (config.json){runs_in(folder)}"
        )
    refuse_damaged(folder, f"--model {model}")
    try:
        if not isinstance(json.loads((folder / "config.json").read_bytes()), dict):
            raise TypeError("config.json holds no settings")
        adapter = SemanticAdapter.from_pretrained(folder, use_safetensors=True)
        card = AdapterCard.model_validate(adapter.config.card)
    except ValidationError as error:
        raise UserError(f"{model}: config.json: {explain(error)}") from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = one_line(error, 300)
        raise UserError(f"{model} is not an adapter of this version: {reason}") from error
    return adapter, card, (folder / WEIGHTS).read_bytes()
