"""Does synthetic data make a classifier of defects better? ResNet-34 on images of defects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from acontrol.errors import UserError
from acontrol.evaluation.bootstrap import resample_weights
from acontrol.evaluation.budget import Schedule
from acontrol.evaluation.classifier import Classifier
from acontrol.evaluation.dataset import CategoryDataset, Folders, kept_dataset
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.results import TrainingJob, keep
from acontrol.evaluation.trainer import channels_last, fit
from acontrol.seeding import derive_seed

TESTED = "defects"  # Part of the data.
PART = "last"  # The one group of metrics: those of the last epoch.
# By what they are called in tables.
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
_BATCH = 32  # Of inference, whose results do not depend on it.

IntArray = npt.NDArray[np.int64]


class Labelled:
    """Draws images of several folders: each as often, then each defect, then each image."""

    def __init__(self, parts: Sequence[ImageSet], names: Sequence[str]):
        """Take the images and the defects' names, in the order of their labels."""
        self.names = names
        self.parts = [
            (
                one,
                [np.flatnonzero(np.array(one.kinds) == kind) for kind in sorted({*one.kinds})],
            )
            for one in parts
        ]

    def draw(self, _: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """An image and its label."""
        pictures, kinds = self.parts[int(rng.integers(len(self.parts)))]
        places = kinds[int(rng.integers(len(kinds)))]
        place = int(places[int(rng.integers(len(places)))])
        return pictures.images[place], torch.tensor(self.names.index(pictures.kinds[place]))


@dataclass(frozen=True)
class Classification:
    """A classifier is trained on a source's images of defects, and tested on real ones.

    Attributes:
        folders: Where images are.
        schedule: How long to train.
        network: Folder of weights to begin with; random ones without.
        weights: Digest of these, or "random".
        data: For each category and source a digest of the images, of `dataset.check`.
    """

    folders: Folders
    schedule: Schedule
    network: Path | None
    weights: str
    data: Mapping[str, Mapping[str, str]]

    @property
    def parts(self) -> tuple[str, ...]:
        """One group of metrics."""
        return (PART,)

    def facts(self, training: TrainingJob) -> dict[str, Any]:
        """What a training's result depends on."""
        return {
            "category": training.category,
            "source": training.source,
            "seed": training.seed,
            "budget": self.schedule.model_dump(),
            "network": self.weights,
            "data": self.data[training.category][training.source],
        }

    def run(self, training: TrainingJob, out: Path) -> TrainingJob:
        """Train one classifier, test it, and keep what came of it."""
        dataset = kept_dataset(self.folders, training.category, self.data[training.category])
        test = dataset.part(TESTED)
        names = sorted(set(test.kinds))
        source = Labelled([dataset.part(one) for one in training.source.split("+")], names)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("classifier", training.seed))
            classifier = channels_last(Classifier(len(names), self.network).to(device))
        losses = []
        trained = fit(
            classifier,
            self.schedule,
            source.draw,
            lambda images, labels: F.cross_entropy(classifier(images), labels),
            training.seed,
        )
        for _, loss in trained:
            losses.append(loss)
        table = confusion(predicted(classifier, test), test, names)
        weights = resample_weights(test.anomalous, training.category)
        result = self.facts(training) | {
            "losses": losses,
            "names": names,
            PART: {"epoch": self.schedule.epochs, **metrics_of(table.sum(axis=0))},
        }
        drawn = np.einsum("ri,iab->rab", weights, table)
        resamples = [metrics_of(one) for one in drawn]
        arrays = {
            "confusion": table.sum(axis=0),
            f"{PART}_resamples": np.array([[one[m] for one in resamples] for m in METRICS]),
        }
        keep(training.file(out), result, arrays)
        return training


def names_of(dataset: CategoryDataset, sources: Sequence[str]) -> list[str]:
    """The defects to tell apart, in the order of their labels: those of the test images.

    Raises:
        UserError: If a source has others.
    """
    names = sorted({*dataset.part(TESTED).kinds})
    for part in sorted({one for source in sources for one in source.split("+")}):
        others = sorted({*dataset.part(part).kinds} - {*names})
        if others:
            raise UserError(
                f"{part}: has the defect {others[0]!r} of {dataset.category}, which no test "
                f"image has; {dataset.category}'s defects are {', '.join(names)}"
            )
    return names


@torch.no_grad()
def predicted(classifier: Classifier, pictures: ImageSet) -> Int[Tensor, " n"]:
    """The likeliest defect of each image."""
    device = classifier.get_buffer("mean").device
    parts = [
        classifier(part.to(device).float() / 255).argmax(dim=1).cpu()
        for part in pictures.images.split(_BATCH)
    ]
    return torch.cat(parts)


def confusion(found: Int[Tensor, " n"], pictures: ImageSet, names: Sequence[str]) -> IntArray:
    """For each image a table with a single 1, at its defect and what it was taken for."""
    table = np.zeros((len(pictures), len(names), len(names)), dtype=np.int64)
    truth = [names.index(kind) for kind in pictures.kinds]
    table[np.arange(len(pictures)), truth, found.numpy()] = 1
    return table


def metrics_of(table: npt.NDArray[Any]) -> dict[str, float]:
    """Of a table of counts, (defect, taken for).

    accuracy            share of images that are right
    balanced_accuracy   mean over defects of that share, over those that have images
    """
    counts = table.sum(axis=1)
    right = np.diagonal(table)
    some = counts > 0
    return {
        "accuracy": float(right.sum() / counts.sum()),
        "balanced_accuracy": float((right[some] / counts[some]).mean()),
    }
