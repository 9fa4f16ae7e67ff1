"""Small checkpoints for tests, told apart by their step."""

import torch

from acontrol.config import RunConfig
from acontrol.method.sga import SemanticAdapter
from acontrol.runs.storage import StoragePath
from acontrol.train.checkpoint import AdapterState, TrainState, write_checkpoint


def small_adapter(card: dict[str, object], step: int = 1) -> SemanticAdapter:
    """An adapter whose weights say after which step they are."""
    adapter = SemanticAdapter([["one", 3], ["two", 5]], 4, card=card)
    with torch.no_grad():
        adapter.proj.weight.copy_(torch.arange(64).reshape(16, 4) + 1000.0 * step)
    return adapter


def checkpoint_at(
    adapter: SemanticAdapter, run: StoragePath, step: int, launch: str = "a"
) -> StoragePath:
    weights = {name: value.clone() for name, value in adapter.state_dict().items()}
    moments = {f"exp_avg.{name}": value * step for name, value in weights.items()}
    state = TrainState(
        step=step, position=step * 8, data_digest="d", base_digest="b", config=RunConfig()
    )
    folder = run / "launches" / launch
    return write_checkpoint(folder, adapter, AdapterState(weights, moments, step), state)


def files_of(path: StoragePath) -> list[str]:
    """Relative paths of all files below."""
    root = str(path)
    return sorted(str(file)[len(root) + 1 :] for file in path.rglob("*") if file.is_file())
