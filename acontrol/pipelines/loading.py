"""Load what draws: an adapter with the base that it was trained on."""

import hashlib
from pathlib import Path

import torch
from pydantic import ValidationError

from acontrol.config import AdapterCard
from acontrol.errors import UserError, explain
from acontrol.method.sga import SemanticAdapter
from acontrol.networks import locate
from acontrol.networks.load import load_base
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.runs import storage

# What may lie in a model's folder: a run's, or an adapter's own.
ADAPTER_FILES = ("adapter", "run.json", "config.json", "diffusion_pytorch_model.safetensors")


def load_pipeline(
    model: str, base_path: str | None = None, device: str | torch.device = "cpu"
) -> tuple[AnomalyControlPipeline, str]:
    """Load a run's or an adapter's folder with the base it was trained on.

    Args:
        model: The run's output folder, or an adapter folder, or the URI of one.
        base_path: Where the base is now, if it has moved.
        device: Where to put it.

    Returns:
        The pipeline, and a digest of adapter and base together.

    Raises:
        UserError: If there is no adapter, its JSON is not ours, or the base is another one.
    """
    adapter, card, weights = load_adapter(model)
    config = card.base
    if base_path is not None:
        config = config.model_copy(update={"path": base_path})
    found = locate.digest(config)
    if found != card.base_digest:
        raise UserError(
            f"the base at {config.path} is not the one that {model} was trained on "
            "(its files have another digest): name the right one with --base-path"
        )
    pipeline = AnomalyControlPipeline.from_base(load_base(config), adapter.eval())
    return pipeline.to(device), hashlib.sha256(weights + found.encode()).hexdigest()


def load_adapter(model: str) -> tuple[SemanticAdapter, AdapterCard, bytes]:
    """Load the adapter of a run's or an adapter's folder: (adapter, card, weights' file).

    Raises:
        UserError: If there is no adapter, or its JSON is not ours.
    """
    with storage.local_copy(storage.storage_path(model), ADAPTER_FILES) as folder:
        return _load_adapter(model, folder)


def _load_adapter(model: str, folder: Path) -> tuple[SemanticAdapter, AdapterCard, bytes]:
    if (folder / "adapter" / "config.json").is_file():
        folder = folder / "adapter"
    if (folder / "run.json").is_file():
        raise UserError(f"--model {model}: this run has no checkpoint yet")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--model {model}: neither a run's output folder (adapter/config.json) nor an "
            "adapter folder (config.json)"
        )
    try:
        adapter = SemanticAdapter.from_pretrained(folder, use_safetensors=True)
        card = AdapterCard.model_validate(adapter.config.card)
    except ValidationError as error:
        raise UserError(f"{model}: config.json: {explain(error)}") from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{model} is no adapter of this version: {reason}") from error
    return adapter, card, (folder / "diffusion_pytorch_model.safetensors").read_bytes()
