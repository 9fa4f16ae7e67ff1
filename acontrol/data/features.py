"""What the frozen networks make of each sample, kept beside the shards.

    FEATURES/<digest>/samples-000064.safetensors    64 samples from number 64 on
    FEATURES/<digest>/about.json                    written last: the set is whole

The digest covers everything that the values depend on: samples, settings, weights, precision.
A set under another digest is never read.
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

FORMAT = "acontrol-features-1"
ABOUT = "about.json"
CHUNK = 64  # Samples a file.
OPEN_FILES = 256  # Under the usual limit of a process.


@dataclass(frozen=True)
class Features:
    """Of a batch of samples.

    Attributes:
        latent_mean: Of the VAE's posterior, (batch, channel, h, w). Moments are kept and not
            latents, so that every step draws its own. On an inpainting base twice the
            channels: the image's, then those of the image without its defect.
        latent_std: The same shape.
        latent_mask: Latents that the defect's mask touches, 1 there, (batch, 1, h, w).
        text: CLIP's states of the target text T_t, (batch, token, dim).
        tokens: C' of the reference, (batch, query, dim).
        energy_before: E of Eq. (3) before ASEA, (batch,).
        energy_after: E after it, (batch,).
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
    """One rank's samples of one step, when the frozen networks have already seen them.

    Attributes:
        positions: Global positions in the stream.
        keys: Keys of the samples, for messages.
    """

    positions: list[int]
    keys: list[str]


# What of a sample as the reference, and what of it as the target, goes into a batch.
OF_REFERENCE = ("tokens", "energy_before", "energy_after")


def identity(config: RunConfig, data_digest: str, base_digest: str) -> dict[str, Any]:
    """Everything that features depend on, by name."""
    settings = json.loads(config.model_dump_json(include={"csm", "asea"}))
    return {
        "format": FORMAT,
        "data": data_digest,
        "base": base_digest,
        "precision": config.runtime.precision,
        "resolution": config.data.resolution,
        "reference_view": config.data.reference_view,
        **{f"csm.{name}": value for name, value in settings["csm"].items() if name != "mode"},
        **{f"asea.{name}": value for name, value in settings["asea"].items()},
    }


def digest_of(identified: Mapping[str, Any]) -> str:
    """Sha256 of an identity."""
    return hashlib.sha256(json.dumps(identified, sort_keys=True).encode()).hexdigest()


class FeatureFolder:
    """The set of one identity under a root: written chunk by chunk, read sample by sample."""

    def __init__(self, root: str | Path, identified: Mapping[str, Any], keys: list[str]):
        """Name a set; nothing needs to be there yet.

        Args:
            root: FEATURES.
            identified: From ``identity``.
            keys: Of all samples, in the shards' order.
        """
        self.root, self.identified, self.keys = Path(root), dict(identified), keys
        self.digest = digest_of(identified)
        self.path = self.root / self.digest
        self._opened: dict[int, safe_open] = {}

    def missing(self) -> list[int]:
        """Chunks that are not there yet, each by its first sample."""
        starts = range(0, len(self.keys), CHUNK)
        return [first for first in starts if not self._file(first).is_file()]

    def write(self, first: int, features: Features) -> None:
        """Put one chunk in place, whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(features, name).cpu().contiguous() for name in NAMES}
        keys = self.keys[first : first + CHUNK]
        partial = self.path / f".{first:06d}-{os.getpid()}.partial"
        metadata = {"digest": self.digest, "keys": json.dumps(keys)}
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, self._file(first))

    def finish(self) -> None:
        """Declare the set whole.

        Raises:
            UserError: If a chunk is missing.
        """
        if missing := self.missing():
            raise UserError(f"{self.path}: the samples from {missing[0]} on are not there")
        partial = self.path / f".{ABOUT}"
        partial.write_text(json.dumps(self.identified, indent=1) + "\n")
        os.replace(partial, self.path / ABOUT)

    def why_not(self) -> str | None:
        """Why this set cannot be used; None if it can."""
        if (self.path / ABOUT).is_file() and not self.missing():
            return None
        if self.path.is_dir():
            return f"{self.path} is not finished"
        others = [_read_about(file) for file in sorted(self.root.glob(f"*/{ABOUT}"))]
        if not others:
            return f"{self.root} holds none"
        changes = min((_changes(other, self.identified) for other in others), key=len)
        return f"{self.root} holds those of other settings ({'; '.join(changes)})"

    def read(self, number: int) -> dict[str, Tensor]:
        """One sample's features by name, without the batch axis.

        Raises:
            UserError: If its file is damaged or belongs to something else.
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
            said = opened.metadata() or {}
            whole = set(opened.keys()) == set(NAMES) and all(
                opened.get_slice(name).get_shape()[0] == len(keys) for name in NAMES
            )
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is damaged ({error}): delete it, and precompute again"
            ) from error
        if not whole or said != {"digest": self.digest, "keys": json.dumps(keys)}:
            raise UserError(f"{file} is of other samples: delete it, and precompute again")
        return opened

    def _file(self, first: int) -> Path:
        return self.path / f"samples-{first:06d}.safetensors"


def feature_folder(config: RunConfig, reader: ShardReader, base_digest: str) -> FeatureFolder:
    """The set that fits a run, whether or not it is there."""
    keys = [sample.key for _, sample in reader.places]
    identified = identity(config, reader.index.digest, base_digest)
    return FeatureFolder(config.data.features or "", identified, keys)


def joined(parts: list[Features]) -> Features:
    """Batches one after another."""
    return Features(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in NAMES}
    )


def _read_about(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError):
        said = {}
    return said if isinstance(said, dict) else {}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, digests without their values."""
    different = [name for name in now if before.get(name) != now[name]]
    return [
        f"other {name}"
        if name in ("data", "base")
        else f"{name}: {before.get(name)} -> {now[name]}"
        for name in different
    ]
