"""Precomputed outputs of the frozen networks for each sample.

    FEATURES/<digest>/samples-000064.safetensors    64 samples from number 64 on
    FEATURES/<digest>/about.json                    written last: the set is complete

The digest covers everything that the values depend on: samples, settings, weights, precision.
A set with another digest is never read.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from acontrol.config import RunConfig
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError

FORMAT = "acontrol-features-2"
ABOUT = "about.json"
CHECKSUM = "sha256"  # In a chunk's metadata, of its values.
CHUNK = 64  # Samples per file.
OPEN_FILES = 256  # Below the usual limit of a process.


@dataclass(frozen=True)
class Features:
    """The features of a batch of samples.

    Attributes:
        latent_mean: Mean of the VAE's posterior, (batch, channel, h, w). Moments are stored
            instead of latents, so that each step samples its own. An inpainting base has twice
            the channels: the image's, then those of the image without its defect.
        latent_std: Standard deviation of the posterior, the same shape.
        latent_mask: 1 for latents that the defect's mask touches, (batch, 1, h, w).
        text: CLIP's states of the target text T_t, (batch, token, dim).
        tokens: C' of the reference, (batch, query, dim).
        energy_before: E of Eq. (3) before ASEA, (batch,).
        energy_after: E after ASEA, (batch,).
    """

    latent_mean: Tensor
    latent_std: Tensor
    latent_mask: Tensor
    text: Tensor
    tokens: Tensor
    energy_before: Tensor
    energy_after: Tensor


NAMES = tuple(field.name for field in fields(Features))


@dataclass(frozen=True)
class FeatureBatch(Features):
    """One rank's samples of one step, as features.

    Attributes:
        positions: Global positions in the stream.
        keys: Keys of the samples, for messages.
    """

    positions: list[int]
    keys: list[str]


# The features that come from the reference; the others come from the target.
OF_REFERENCE = ("tokens", "energy_before", "energy_after")


def identity(config: RunConfig, data_digest: str, base_digest: str) -> dict[str, Any]:
    """Everything that the features depend on, by name."""
    settings = json.loads(config.model_dump_json(include={"csm", "asea"}))
    return {
        "format": FORMAT,
        "data": data_digest,
        "base": base_digest,
        "precision": config.runtime.precision,
        "resolution": config.data.resolution,
        "reference_view": config.data.reference_view,
        # Named only where it is no earlier version's, whose features stay good.
        **({"target_view": "region"} if config.data.target_view == "region" else {}),
        **({} if config.data.target_px is None else {"target_px": config.data.target_px}),
        **{f"csm.{name}": value for name, value in settings["csm"].items() if name != "mode"},
        **{f"asea.{name}": value for name, value in settings["asea"].items()},
    }


def digest_of(identity: Mapping[str, Any]) -> str:
    """Sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class FeatureFolder:
    """The features of one identity, written in chunks and read by sample."""

    def __init__(self, root: str | Path, identity: Mapping[str, Any], keys: list[str]):
        """Nothing is read or written yet.

        Args:
            root: FEATURES.
            identity: From ``identity``.
            keys: Keys of all samples, in the shards' order.
        """
        self.root, self.identity, self.keys = Path(root), dict(identity), keys
        self.digest = digest_of(identity)
        self.path = self.root / self.digest
        self._opened: dict[int, safe_open] = {}
        self._intact: set[int] = set()  # Chunks whose checksum held.

    def missing(self) -> list[int]:
        """The first sample of each missing chunk."""
        starts = range(0, len(self.keys), CHUNK)
        return [first for first in starts if not self._file(first).is_file()]

    def write(self, first: int, features: Features) -> None:
        """Write one chunk atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(features, name).cpu().contiguous() for name in NAMES}
        keys = self.keys[first : first + CHUNK]
        partial = self.path / f".{first:06d}-{os.getpid()}.partial"
        checksum = _checksum(tensors)
        metadata = {"digest": self.digest, "keys": json.dumps(keys), CHECKSUM: checksum}
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, self._file(first))

    def finish(self) -> None:
        """Mark the set as complete.

        Raises:
            UserError: If a chunk is missing.
        """
        if missing := self.missing():
            raise UserError(f"{self.path}: the samples from {missing[0]} on are missing")
        partial = self.path / f".{ABOUT}"
        partial.write_text(json.dumps(self.identity, indent=1) + "\n")
        os.replace(partial, self.path / ABOUT)

    def why_not(self) -> str | None:
        """Why this set is unusable; None if it is usable."""
        if (self.path / ABOUT).is_file() and not self.missing():
            return None
        if self.path.is_dir():
            return f"{self.path} is not finished"
        others = [_read_about(file) for file in sorted(self.root.glob(f"*/{ABOUT}"))]
        if not others:
            return f"{self.root} holds none"
        changes = min((_changes(other, self.identity) for other in others), key=len)
        return f"{self.root} holds those of other settings ({'; '.join(changes)})"

    def read(self, number: int) -> dict[str, Tensor]:
        """One sample's features by name, without the batch axis.

        Raises:
            UserError: If its file is damaged or holds other samples.
        """
        first = number - number % CHUNK
        if first not in self._opened:
            if len(self._opened) >= OPEN_FILES:
                self._opened.pop(next(iter(self._opened)))
            self._opened[first] = self._open(first)
        chunk = self._opened[first]
        return {name: chunk.get_slice(name)[number - first] for name in NAMES}

    def _open(self, first: int) -> safe_open:
        file = self._file(first)
        keys = self.keys[first : first + CHUNK]
        try:
            opened = safe_open(file, "pt")
            metadata = opened.metadata() or {}
            complete = set(opened.keys()) == set(NAMES) and all(
                opened.get_slice(name).get_shape()[0] == len(keys) for name in NAMES
            )
            checksum = metadata.pop(CHECKSUM, None)  # None: of an earlier version.
            intact = first in self._intact or checksum is None or not complete
            if not intact:
                intact = checksum == _checksum(
                    {name: opened.get_tensor(name) for name in NAMES}
                )
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is damaged ({error}): delete it, and precompute again"
            ) from error
        if not complete or metadata != {"digest": self.digest, "keys": json.dumps(keys)}:
            raise UserError(f"{file} belongs to other samples: delete it, and precompute again")
        if not intact:
            raise UserError(
                f"{file} is damaged (its checksum differs): delete it, and precompute again"
            )
        self._intact.add(first)
        return opened

    def _file(self, first: int) -> Path:
        return self.path / f"samples-{first:06d}.safetensors"


def feature_folder(config: RunConfig, reader: ShardReader, base_digest: str) -> FeatureFolder:
    """The feature set of a run, which may not exist yet."""
    keys = [sample.key for _, sample in reader.places]
    of_run = identity(config, reader.index.digest, base_digest)
    return FeatureFolder(config.data.features or "", of_run, keys)


def joined(parts: list[Features]) -> Features:
    """Concatenate batches."""
    return Features(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in NAMES}
    )


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    checksum = hashlib.sha256()
    for name in NAMES:
        checksum.update(tensors[name].view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def _read_about(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences; digests without their values."""
    return [
        f"other {name}"
        if name in ("data", "base")
        else f"{name}: {before.get(name)} -> {value}"
        for name, value in now.items()
        if before.get(name) != value
    ]
