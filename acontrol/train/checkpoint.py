"""Checkpoint bundles: written whole or not at all, never trusted without their manifest.

    bundle-00000020/
      adapter/           config.json and weights, as SemanticAdapter.from_pretrained reads them
      moments.safetensors
      state.json         position, optimizer steps, config, digests
      manifest.json      size and sha256 of every file above; written last

No manifest, no checkpoint. Nothing in a bundle is pickled.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file

from acontrol.config import RunConfig, Settings, UserError, explain
from acontrol.sga import SemanticAdapter
from acontrol.train.engine import AdapterState

MANIFEST = "manifest.json"
MOMENTS_NAME = "moments.safetensors"
WEIGHT = "weight."
log = logging.getLogger(__name__)


class BundleFile(Settings):
    """What a file must be."""

    size: int = Field(ge=0)
    sha256: str


class Manifest(Settings):
    """Every file of a bundle but itself."""

    files: dict[str, BundleFile]


class TrainState(Settings):
    """Where a run stands. Its draws are keyed by position, so no generator is saved."""

    step: int = Field(ge=0, description="Optimizer steps taken.")
    position: int = Field(ge=0, description="Samples consumed from the stream.")
    data_digest: str
    base_digest: str
    config: RunConfig


@dataclass(frozen=True)
class Bundle:
    """A bundle that verified."""

    path: Path
    state: TrainState

    def adapter_state(self) -> AdapterState:
        """Weights and moments."""
        exported = load_file(self.path / "adapter" / "diffusion_pytorch_model.safetensors")
        moments = load_file(self.path / MOMENTS_NAME)
        weights = {
            name.removeprefix(WEIGHT): moments.pop(name)
            for name in list(moments)
            if name.startswith(WEIGHT)
        }
        if not weights:
            return AdapterState(exported, moments, self.state.step)
        return AdapterState(weights, moments, self.state.step, averages=exported)


def write_bundle(
    folder: Path, adapter: SemanticAdapter, state: AdapterState, train_state: TrainState
) -> Path:
    """Write a bundle under ``folder``; returns its path.

    Args:
        folder: The launch's own folder.
        adapter: What is exported: the weights of ``state``, or their averages; with the card.
        state: Whole weights and moments.
        train_state: Where the run stands.
    """
    path = folder / f"bundle-{train_state.step:08d}"
    if path.exists():  # A worker that restarted within one launch writes it again.
        shutil.rmtree(path)
    path.mkdir(parents=True)
    adapter.save_pretrained(path / "adapter")
    moments = dict(state.moments)
    if state.averages is not None:  # Then the exported adapter is the average.
        moments |= {f"{WEIGHT}{name}": weight for name, weight in state.weights.items()}
    save_file(moments, path / MOMENTS_NAME)
    (path / "state.json").write_text(train_state.model_dump_json(indent=1))
    files = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            _sync(file)
            files[file.relative_to(path).as_posix()] = BundleFile(
                size=file.stat().st_size, sha256=_sha256(file)
            )
    for folder in (path / "adapter", path, path.parent):
        _sync(folder)
    # The manifest appears in one piece, after everything it lists is on the disk.
    partial = path / f".{MANIFEST}"
    partial.write_text(Manifest(files=files).model_dump_json(indent=1))
    _sync(partial)
    os.replace(partial, path / MANIFEST)
    _sync(path)
    return path


def read_bundle(path: Path) -> Bundle:
    """Check every file of a bundle against its manifest.

    Raises:
        ValueError: If a file is missing, of another size or changed, or there is no manifest.
    """
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ValueError("no manifest: it was never finished") from None
    except ValidationError as error:
        raise ValueError(f"unreadable manifest: {explain(error)}") from error
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != expected.size or _sha256(file) != expected.sha256:
            raise ValueError(f"{name} is damaged")
    try:
        state = TrainState.model_validate_json((path / "state.json").read_bytes())
    except ValidationError as error:
        raise ValueError(f"state.json is of another version: {explain(error)}") from error
    return Bundle(path, state)


def newest_bundle(run: Path) -> Bundle | None:
    """The furthest bundle of a run that verifies, over all launches; None before the first.

    Raises:
        UserError: If there are finished bundles but none verifies: starting again from step 0
            must be somebody's decision.
    """
    refused = []
    for path in _furthest_first(run):
        try:
            return read_bundle(path)
        except ValueError as error:
            if (path / MANIFEST).exists():
                refused.append(f"{path.name}: {error}")
                log.warning("bundle %s is not used: %s", path, error)
    if refused:
        raise UserError(
            f"{run}: no bundle verifies ({'; '.join(refused)}); restore one, or start anew "
            "with another --output"
        )
    return None


def prune(run: Path, keep: int, newest: Path) -> None:
    """Delete all but ``newest`` and the ``keep - 1`` finished bundles before it.

    A bundle of another launch that claims to be further was refused when this launch started:
    it does not count, and goes.
    """
    step = newest.name
    kept = 0
    for path in _furthest_first(run):
        refused = path.name > step
        if path == newest:
            kept += 1
        elif refused or kept >= keep:
            # The manifest goes first: a half-deleted bundle must not look whole.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
        elif (path / MANIFEST).exists():
            kept += 1


def export_adapter(bundle: Path, target: Path) -> None:
    """Copy a bundle's adapter to a stable place, over the one there, a rename a file.

    So there is a whole adapter at every moment, also after a kill. Between the two renames the
    card may count fewer steps than the weights have; nothing else in it changes within a run.
    """
    target.mkdir(parents=True, exist_ok=True)
    # The weights first: where config.json is, an adapter is.
    for source in sorted((bundle / "adapter").iterdir(), reverse=True):
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        _sync(partial)
        os.replace(partial, target / source.name)
    _sync(target)


def changed_settings(before: RunConfig, now: RunConfig) -> list[str]:
    """Settings that differ and on which the numbers depend, as "name: before -> now"."""
    # On how many workers, and what is shown, may change from launch to launch.
    free = {"output", "init", "profile", "cluster", "checkpoint", "samples", "tracking"}
    left = _flat(json.loads(before.model_dump_json(exclude=free)))
    right = _flat(json.loads(now.model_dump_json(exclude=free)))
    # Contents are compared by digest, wherever they lie now.
    ignored = {"data.shards", "data.cache_dir", "data.features", "data.loader_workers"}
    ignored |= {"optim.max_skipped"}  # Says when to give up, and nothing of the numbers.
    ignored |= {"base.path", "base.revision", "base.vlm_path", "base.vlm_revision"}
    if before.optim.schedule == now.optim.schedule == "constant":
        ignored.add("optim.steps")  # A cosine ends where the run does.
    return [
        f"{name}: {left[name]} -> {right[name]}"
        for name in left
        if left[name] != right[name] and name not in ignored
    ]


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _furthest_first(run: Path) -> Iterator[Path]:
    found = run.glob("launches/*/bundle-*")
    return iter(sorted(found, key=lambda path: (path.name, path.parent.name), reverse=True))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
