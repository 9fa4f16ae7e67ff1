"""Trainings of a comparison, and what is kept of each.

    OUT/trainings/CATEGORY/SOURCE/seed-0.npz    arrays: resamples, curves, maps
    OUT/trainings/CATEGORY/SOURCE/seed-0.json   metrics; written last, so it stands for both

A training that is there is not done again.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from acontrol.errors import UserError
from acontrol.runs import storage
from acontrol.runs.guard import changes, refuse


@dataclass(frozen=True)
class TrainingJob:
    """One network to train.

    Attributes:
        category: Product.
        source: "none", or parts divided by "+": "real", "perlin", "cutpaste" or the name of a
            synthetic folder.
        seed: Of weights and samples.
    """

    category: str
    source: str
    seed: int

    def file(self, out: Path) -> Path:
        """Where its metrics go."""
        return out / "trainings" / self.category / self.source / f"seed-{self.seed}.json"


@runtime_checkable
class Experiment(Protocol):
    """What is done in every training of a comparison."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the groups of metrics that a result holds."""

    def facts(self, training: TrainingJob) -> dict[str, Any]:
        """What a training's result depends on."""

    def run(self, training: TrainingJob, out: Path) -> TrainingJob:
        """Train, test, and keep what came of it with `keep`."""


def is_done(training: TrainingJob, work: Experiment, out: Path) -> bool:
    """Whether its result is there, with all its parts.

    Raises:
        UserError: If what is there is another training's.
    """
    file = training.file(out)
    arrays = file.with_suffix(".npz")
    if not file.is_file() or not arrays.is_file():
        return False
    try:
        found = dict(json.loads(file.read_text()))
        zipfile.ZipFile(arrays).close()  # Reads the list of what is in it.
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: it or its .npz is damaged ({error}); remove both") from error
    facts = work.facts(training)
    refuse(file, changes({name: found.get(name) for name in facts}, facts), "--out")
    return all(part in found for part in work.parts)


def keep(file: Path, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write a training's result, whole or not at all."""
    with storage.replacing(file.with_suffix(".npz")) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    storage.write(file, json.dumps(result, indent=1).encode())
