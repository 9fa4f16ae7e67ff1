"""The trainings of a comparison and their results.

    OUT/trainings/CATEGORY/SOURCE/seed-0.npz    arrays: resamples, curves, maps
    OUT/trainings/CATEGORY/SOURCE/seed-0.json   metrics; written last: it completes both
    OUT/trainings/CATEGORY/SOURCE/head-seed-0.* those of another detector than the U-Net

A finished training is not repeated.
"""

import dataclasses
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from acontrol.errors import UserError
from acontrol.evaluation.budget import DetectorName, Reading
from acontrol.runs import storage
from acontrol.runs.guard import changes, refuse


def method_of(source: str) -> str:
    """A source without the numbers of its adapters: real+ours of real+ours@2."""
    return re.sub(r"@\d+", "", source)


def of_adapter(name: str, number: int) -> str:
    """The name of a method's folder from one of its adapters, numbered from 1."""
    return name if number == 1 else f"{name}@{number}"


@dataclass(frozen=True)
class TrainingJob:
    """One network to train.

    Attributes:
        category: Product.
        source: "none", or parts joined by "+": "real", "perlin", "cutpaste" or the name of a
            synthetic folder, with @2 for that of its second adapter.
        seed: Seed of weights and samples.
        detector: Which detector; classifiers have the default.
        fold: Which fold of a cross-validation is tested on, from 1; 0 is the test part.
    """

    category: str
    source: str
    seed: int
    detector: DetectorName = "unet"
    fold: int = 0

    @property
    def unit(self) -> str:
        """What it is tested on: the category's test part, or a fold of its training part."""
        return f"{self.category}/fold-{self.fold}" if self.fold else self.category

    def file(self, out: Path) -> Path:
        """File of its metrics."""
        name = f"seed-{self.seed}.json"
        if self.fold:
            name = f"fold-{self.fold}-{name}"
        if self.detector != "unet":
            name = f"{self.detector}-{name}"
        return out / "trainings" / self.category / self.source / name

    def metrics(self, out: Path) -> dict[str, Any]:
        """Its saved metrics and settings."""
        return dict(json.loads(self.file(out).read_text()))

    def array(self, out: Path, name: str) -> npt.NDArray[Any]:
        """One of its saved arrays."""
        with np.load(self.file(out).with_suffix(".npz")) as arrays:
            return np.asarray(arrays[name])

    def metadata(
        self, budget: Reading, data: Mapping[str, Mapping[str, str]], **more: Any
    ) -> dict[str, Any]:
        """What its result depends on: job, budget, the images' digest, and more.

        Defaults are left out: they are what results had before there was a choice.
        """
        fields = dataclasses.fields(self)
        own = {field.name: getattr(self, field.name) for field in fields}
        return {
            **{f.name: own[f.name] for f in fields if own[f.name] != f.default},
            "budget": budget.model_dump(exclude_defaults=True),
            **more,
            "data": data[self.unit][self.source],
        }


@runtime_checkable
class Experiment(Protocol):
    """What the trainings of a comparison do."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the groups of metrics in a result."""

    def metadata(self, job: TrainingJob) -> dict[str, Any]:
        """What a training's result depends on."""

    def run(self, job: TrainingJob, out: Path) -> TrainingJob:
        """Train, test, and `save` the result."""


def is_done(job: TrainingJob, experiment: Experiment, out: Path) -> bool:
    """Whether a training's result exists, with all its parts.

    Raises:
        UserError: If it is damaged or from another comparison.
    """
    file = job.file(out)
    arrays = file.with_suffix(".npz")
    if not file.is_file() or not arrays.is_file():
        return False
    try:
        saved = job.metrics(out)
        zipfile.ZipFile(arrays).close()  # Reads the list of its members.
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: it or its .npz is damaged ({error}); remove both") from error
    metadata = experiment.metadata(job)
    refuse(file, changes({name: saved.get(name) for name in metadata}, metadata), "--out")
    return all(part in saved for part in experiment.parts)


def save(file: Path, metrics: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write a training's result atomically."""
    with storage.replacing(file.with_suffix(".npz")) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    storage.write(file, json.dumps(metrics, indent=1).encode())
