"""Checkpoints: written whole or not at all, trusted only with their manifest.

    bundle-00000020/
      adapter/           config.json and weights, as SemanticAdapter.from_pretrained reads them
      moments.safetensors
      state.json         position, optimizer steps, config, digests
      manifest.json      size and sha256 of all other files; written last

Without a manifest it is not a checkpoint. Nothing in a checkpoint is pickled.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from acontrol.config import AdapterCard, RunConfig, Settings
from acontrol.errors import UserError, explain
from acontrol.networks.checksum import save_with_checksum
from acontrol.runs import storage
from acontrol.runs.storage import StoragePath

if TYPE_CHECKING:  # diffusers is not for a driver that reads checkpoints.
    from acontrol.method.sga import SemanticAdapter

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
MOMENTS_NAME = "moments.safetensors"
STATE_NAME = "state.json"
CONFIG_NAME = "adapter/config.json"
WEIGHTS_NAME = "adapter/diffusion_pytorch_model.safetensors"
WEIGHT = "weight."
SPARE = 2**20  # Bytes for the file system itself.


class CheckpointFile(Settings):
    """Size and digest of a file."""

    size: int = Field(ge=0)
    sha256: str


class Manifest(Settings):
    """All files of a checkpoint except the manifest."""

    files: dict[str, CheckpointFile]


class TrainState(Settings):
    """Progress of a run. Draws are keyed by position, so no generator state is saved."""

    format: Literal["acontrol-checkpoint-1"] = "acontrol-checkpoint-1"  # None before 0.2.
    step: int = Field(ge=0, description="Optimizer steps taken.")
    position: int = Field(ge=0, description="Samples consumed from the stream.")
    data_digest: str
    base_digest: str
    skipped_digest: str = Field(
        "", description="Digest of the keys of skipped damaged samples."
    )
    config: RunConfig


@dataclass(frozen=True)
class AdapterState:
    """Adapter and optimizer, as whole fp32 tensors on the CPU.

    Attributes:
        weights: By parameter name.
        moments: By "exp_avg.<parameter>" and "exp_avg_sq.<parameter>"; "step" counts AdamW's
            updates, fewer than ``steps`` if some were skipped.
        steps: Optimizer steps taken, skipped ones included.
        averages: Moving averages of the weights, if the run keeps them.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    steps: int
    averages: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with manifest and state, which agree."""

    path: StoragePath
    state: TrainState
    manifest: Manifest

    def adapter_state(self) -> AdapterState:
        """Weights and moments, checked against the manifest.

        Raises:
            ValueError: If they have changed.
        """
        exported = load(_vouched(self.path, self.manifest, WEIGHTS_NAME))
        moments = load(_vouched(self.path, self.manifest, MOMENTS_NAME))
        weights = {
            name.removeprefix(WEIGHT): moments.pop(name)
            for name in list(moments)
            if name.startswith(WEIGHT)
        }
        if not weights:
            return AdapterState(exported, moments, self.state.step)
        return AdapterState(weights, moments, self.state.step, averages=exported)

    def card(self) -> AdapterCard:
        """The exported adapter's card, checked against the manifest.

        Raises:
            ValueError: If it has changed.
        """
        config = json.loads(_vouched(self.path, self.manifest, CONFIG_NAME))
        return AdapterCard.model_validate(config["card"])


def write_checkpoint(
    folder: StoragePath,
    adapter: "SemanticAdapter",
    state: AdapterState,
    train_state: TrainState,
) -> StoragePath:
    """Write a checkpoint under ``folder``; returns its path.

    Args:
        folder: The launch's own folder.
        adapter: The adapter to export, with its card: the weights of ``state`` or their
            averages.
        state: Whole weights and moments.
        train_state: Progress of the run.

    Raises:
        UserError: If the disk is full; nothing is left of the checkpoint then.
    """
    path = folder / f"bundle-{train_state.step:08d}"
    files = _contents(adapter, state, train_state)
    size = sum(map(len, files.values()))
    # An earlier one of this name was never finished, or did not verify.
    discard(path)
    storage.check_space(folder, size + SPARE)
    listed = {
        name: CheckpointFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }
    manifest = Manifest(files=listed).model_dump_json(indent=1).encode()
    try:
        # The manifest last, when all files it lists are durable.
        for name, content in {**files, MANIFEST: manifest}.items():
            storage.write(path / name, content)
    except OSError as error:
        discard(path)
        if error.errno in storage.FULL:
            raise UserError(storage.full(folder, size)) from error
        raise
    return path


def _contents(
    adapter: "SemanticAdapter", state: AdapterState, train_state: TrainState
) -> dict[str, bytes]:
    """The files of a checkpoint, in the order of writing."""
    moments = dict(state.moments)
    if state.averages is not None:  # The exported adapter is then the average.
        moments |= {f"{WEIGHT}{name}": weight for name, weight in state.weights.items()}
    return {
        # As from_pretrained reads them, without a detour over a disk that may be full.
        CONFIG_NAME: adapter.to_json_string().encode(),
        WEIGHTS_NAME: save_with_checksum(adapter.state_dict()),
        MOMENTS_NAME: save(moments),
        STATE_NAME: train_state.model_dump_json(indent=1).encode(),
    }


def discard(path: StoragePath) -> None:
    """Delete a checkpoint, its manifest first, so that half of one never looks whole."""
    (path / MANIFEST).unlink(missing_ok=True)
    storage.remove(path)


def open_checkpoint(path: StoragePath) -> Checkpoint:
    """Read a checkpoint's manifest and state, and check that all files exist.

    Raises:
        ValueError: If the manifest or a file is missing, or a file has another size.
    """
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ValueError("no manifest: it was never finished") from None
    except ValidationError as error:
        raise ValueError(f"unreadable manifest: {explain(error)}") from error
    if missing := {WEIGHTS_NAME, MOMENTS_NAME, STATE_NAME} - manifest.files.keys():
        raise ValueError(f"unreadable manifest: it does not list {', '.join(sorted(missing))}")
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != expected.size:
            raise ValueError(f"{name} is damaged")
    try:
        state = TrainState.model_validate_json(_vouched(path, manifest, STATE_NAME))
    except ValidationError as error:
        raise ValueError(f"{STATE_NAME} is of another version: {explain(error)}") from error
    return Checkpoint(path, state, manifest)


def read_checkpoint(path: StoragePath) -> Checkpoint:
    """Check every byte of a checkpoint against its manifest.

    Raises:
        ValueError: If the manifest or a file is missing, or a file has changed.
    """
    checkpoint = open_checkpoint(path)
    for name, expected in checkpoint.manifest.files.items():
        if storage.sha256(path / name) != expected.sha256:
            raise ValueError(f"{name} is damaged")
    return checkpoint


def export_adapter(checkpoint: StoragePath, target: StoragePath) -> None:
    """Copy a checkpoint's adapter to ``target``, replacing the earlier one file by file.

    The adapter there is whole at every moment, also after a kill. Between the two renames the
    card may count fewer steps than the weights have; nothing else in it changes within a run.
    """
    # The weights first: config.json marks an adapter.
    names = sorted((file.name for file in (checkpoint / "adapter").iterdir()), reverse=True)
    for name in names:
        storage.write(target / name, (checkpoint / "adapter" / name).read_bytes())


def _vouched(path: StoragePath, manifest: Manifest, name: str) -> bytes:
    """A file's bytes, checked against the manifest."""
    content: bytes = (path / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
        raise ValueError(f"{name} is damaged")
    return content


def has_checkpoint(run: StoragePath) -> bool:
    """Whether a run has a finished checkpoint, which may turn out to be damaged."""
    return any((path / MANIFEST).exists() for path in _furthest_first(run))


def newest_checkpoint(run: StoragePath) -> Checkpoint | None:
    """The furthest valid checkpoint of a run, over all launches; None before the first.

    Raises:
        UserError: If finished checkpoints exist but none verifies: starting again from step 0
            is for the user to decide.
    """
    refused = []
    for path in _furthest_first(run):
        try:
            return read_checkpoint(path)
        except ValueError as error:
            if (path / MANIFEST).exists():
                refused.append(f"{path.name}: {error}")
                log.warning("checkpoint %s is not used: %s", path, error)
    if refused:
        raise UserError(
            f"{run}: no checkpoint verifies ({'; '.join(refused)}); restore one, or start "
            "again with another --output"
        )
    return None


def prune(run: StoragePath, keep: int, newest: StoragePath) -> None:
    """Delete all but ``newest`` and the ``keep - 1`` valid checkpoints before it.

    A checkpoint of another launch that claims to be further was refused when this launch
    started, and is deleted.
    """
    kept = 1
    for path in _furthest_first(run):
        if path == newest:
            continue
        if path.name <= newest.name and kept < keep and _is_good(path):
            kept += 1
        else:
            discard(path)


def _is_good(path: StoragePath) -> bool:
    try:
        read_checkpoint(path)
    except ValueError:
        return False
    except OSError:  # Unreadable now, which is no reason to delete it.
        pass
    return True


def _furthest_first(run: StoragePath) -> list[StoragePath]:
    paths = run.glob("launches/*/bundle-*")
    return sorted(paths, key=lambda path: (path.name, path.parent.name), reverse=True)
