"""Does synthetic data make a classifier of defects better? ResNet-34 on images of defects."""

import json
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

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.evaluation import figures, summary
from acontrol.evaluation.bootstrap import resample_weights
from acontrol.evaluation.budget import CLASSIFIER_BUDGETS, Schedule
from acontrol.evaluation.classifier import Classifier, weights_digest
from acontrol.evaluation.comparison import (
    check_out,
    checked_data,
    chosen_categories,
    compared,
    planned,
    say_how_long,
    train_all,
)
from acontrol.evaluation.dataset import CategoryDataset, Folders, kept_dataset
from acontrol.evaluation.estimate import seconds_a_classifier
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.report import Report
from acontrol.evaluation.results import TrainingJob, keep
from acontrol.evaluation.settings import ClassificationConfig
from acontrol.evaluation.sources import Paired
from acontrol.evaluation.trainer import channels_last, fit, predict
from acontrol.runs.results import log, results_in
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed

CONTROLS = ("real",)  # The others know no defect by its name.
TESTED = "defects"  # Part of the data.
PART = "last"  # The one group of metrics: those of the last epoch.
# By what they are called in tables.
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}

IntArray = npt.NDArray[np.int64]


class Labelled:
    """Images of several folders with labels; folders are equally likely."""

    def __init__(self, parts: Sequence[ImageSet], names: Sequence[str]):
        """Label defects by their index in ``names``."""
        self.names = names
        self.sources = [Paired(images) for images in parts]

    def draw(self, _: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw an image and its label."""
        source = self.sources[int(rng.integers(len(self.sources)))]
        index = source.index(rng)
        images = source.images
        return images.images[index], torch.tensor(self.names.index(images.defects[index]))


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
        names = sorted(set(test.defects))
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
        table = confusion(predict(classifier, test, _likeliest), test, names)
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
    names = sorted({*dataset.part(TESTED).defects})
    for part in sorted({one for source in sources for one in source.split("+")}):
        others = sorted({*dataset.part(part).defects} - {*names})
        if others:
            raise UserError(
                f"{part}: has the defect {others[0]!r} of {dataset.category}, which no test "
                f"image has; {dataset.category}'s defects are {', '.join(names)}"
            )
    return names


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


def confusion(labels: Int[Tensor, " n"], images: ImageSet, names: Sequence[str]) -> IntArray:
    """One-hot confusion matrices of images, (image, true defect, predicted defect)."""
    table = np.zeros((len(images), len(names), len(names)), dtype=np.int64)
    truth = [names.index(defect) for defect in images.defects]
    table[np.arange(len(images)), truth, labels.numpy()] = 1
    return table


def metrics_of(table: npt.NDArray[Any]) -> dict[str, float]:
    """Metrics of a confusion matrix, (true defect, predicted defect).

    accuracy            share of images that are right
    balanced_accuracy   mean over defects with images of that share
    """
    counts = table.sum(axis=1)
    right = np.diagonal(table)
    tested = counts > 0
    return {
        "accuracy": float(right.sum() / counts.sum()),
        "balanced_accuracy": float((right[tested] / counts[tested]).mean()),
    }


def run_classification(command: ClassificationConfig) -> None:
    """Train the missing classifiers and write the report; the same call continues.

    Raises:
        UserError: If a setting or the data must be put right.
    """
    budget = CLASSIFIER_BUDGETS[command.budget]
    schedule, folders, sources = compared(command, budget, CONTROLS)
    categories = _several_defects(folders.root, command.category)
    classifier = Classifier(2, command.network)
    weights = weights_digest(command.network) if command.network else "random"
    check_out(command)
    trainings = planned(command, schedule, categories, sources)
    folders, data, alike = checked_data(command, folders, categories, sources, [TESTED])
    for one in categories:
        names_of(CategoryDataset(folders, one), sources)
    if command.out is None or command.dry_run:
        test = CategoryDataset(folders, categories[0]).part(TESTED)
        say_how_long(seconds_a_classifier(schedule, classifier, len(test)), len(trainings))
        return
    out = command.out.resolve()
    network = command.network.resolve() if command.network else None
    work = Classification(folders, schedule, network, weights, data)
    about = (
        f"Budget {command.budget}: {schedule.describe()}; {classifier.architecture} from "
        f"{f'weights {weights[:8]}' if network else 'random weights'}. Data "
        f"{folders.root.name}, categories: {', '.join(categories)}; seeds: {command.seeds}."
        f"{alike}"
    )
    with results_in(out, "classification", command.tracking) as tracker:
        train_all(trainings, work, out, command.num_workers)
        _report(trainings, work, out, about, tracker)


def _report(
    trainings: Sequence[TrainingJob],
    work: Classification,
    out: Path,
    about: str,
    tracker: Tracker,
) -> None:
    """Write tables and pictures, and log them."""
    written = Report(out, "Does synthetic data help to tell defects apart?")
    rows = summary.summarise(trainings, out, PART, list(METRICS))
    titles = ("Classification of defects", f"Against {summary.BASELINE} alone")
    said = (
        "of real defects outside the training third, last epoch; balanced: mean over a "
        "category's defects"
    )
    written.tables = summary.compared(rows, list(METRICS.values()), titles, said, about)
    written.rows += summary.long_rows(rows, PART, list(METRICS))
    for category in dict.fromkeys(one.category for one in trainings):
        own = [one for one in trainings if one.category == category]
        by_source = {
            source: [one for one in own if one.source == source]
            for source in dict.fromkeys(one.source for one in own)
        }
        names = json.loads(own[0].file(out).read_text())["names"]
        file = out / f"confusion-{category}.png"
        figures.confusion_plot(by_source, names, out, file)
        written.add_picture(f"{category}: what each defect was taken for, all seeds", file)
    files = written.write()
    metrics = {
        f"{source.replace('+', '_')}/{name}": float(value)
        for source, row in rows.items()
        for name, value in zip(METRICS, row.values, strict=True)
    }
    settings = {
        "budget": work.schedule.model_dump(),
        "network": work.weights,
        "about": about,
    }
    log(tracker, settings, metrics, files)
    print(written.tables[0].markdown())
    print(f"Look at {out / 'index.html'}")
    print(f"Results: {out / 'report.md'}")


def _several_defects(root: Path, chosen: Sequence[str]) -> list[str]:
    """The categories with defects to tell apart; those without are named."""
    folder = open_folder(root)
    kept = []
    for category in chosen_categories(folder, chosen):
        defects = folder.defect_types(category)
        if len(defects) > 1:
            kept.append(category)
        else:
            print(f"Left out: {category}, with {len(defects)} defects nothing to tell apart")
    if not kept:
        raise UserError(f"{root}: no category has two defects in test/<defect> to tell apart")
    return kept
