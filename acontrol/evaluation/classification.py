"""Does synthetic data make a classifier of defects better? ResNet-34 on images of defects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from acontrol.evaluation import caveats, figures, summary
from acontrol.evaluation.bootstrap import resample_weights
from acontrol.evaluation.budget import CLASSIFIER_BUDGETS, Schedule
from acontrol.evaluation.classifier import Classifier, weights_digest
from acontrol.evaluation.comparison import chosen_categories, named_folders, plan_comparison
from acontrol.evaluation.dataset import CategoryDataset, Folders, cached_dataset
from acontrol.evaluation.estimate import seconds_a_classifier
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.report import Report
from acontrol.evaluation.results import TrainingJob, save
from acontrol.evaluation.settings import ClassificationConfig
from acontrol.evaluation.sources import Paired
from acontrol.evaluation.trainer import channels_last, fit, predict
from acontrol.evaluation.trainings import announce, train_all
from acontrol.messages import counted
from acontrol.runs.results import results_in
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed

CONTROLS = ("real",)  # The other controls have no named defects.
TESTED = "defects"  # The part of the data to test on.
PART = "last"  # The one group of metrics, of the last epoch.
# With their names in tables.
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
        image = source.images.at(index, rng)[0]
        return image, torch.tensor(self.names.index(source.images.defects[index]))


@dataclass(frozen=True)
class Classification:
    """Trains a classifier on a source's images of defects, and tests it on real ones.

    Attributes:
        folders: Where images are.
        schedule: How long to train.
        network: Folder of initial weights; random ones without.
        weights: Digest of the initial weights, or "random".
        data: Digests of the images by category and source, from `dataset.check`.
        folds: Where images of each fold of a cross-validation are.
    """

    folders: Folders
    schedule: Schedule
    network: Path | None
    weights: str
    data: Mapping[str, Mapping[str, str]]
    folds: Mapping[int, Folders] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """There is one group of metrics."""
        return (PART,)

    def metadata(self, job: TrainingJob) -> dict[str, Any]:
        """What a training's result depends on."""
        return job.metadata(self.schedule, self.data, network=self.weights)

    def run(self, job: TrainingJob, out: Path) -> TrainingJob:
        """Train a classifier, test it, and save the result."""
        folders = self.folds.get(job.fold, self.folders)
        dataset = cached_dataset(folders, job.category, self.data[job.unit])
        test = dataset.part(TESTED)
        names = sorted(set(test.defects))
        source = Labelled([dataset.part(part) for part in job.source.split("+")], names)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("classifier", job.seed))
            classifier = channels_last(Classifier(len(names), self.network).to(device))
        epochs = fit(
            classifier,
            self.schedule,
            source.draw,
            lambda images, labels: F.cross_entropy(classifier(images), labels),
            job.seed,
        )
        losses = [loss for _, loss in epochs]
        labels = predict(classifier, test, lambda logits: logits.argmax(dim=1))
        table = confusion(labels, test, names)
        weights = resample_weights(test.anomalous, job.unit, dataset.groups_of(test.files))
        metrics = self.metadata(job) | {
            "losses": losses,
            "names": names,
            PART: {"epoch": self.schedule.epochs, **metrics_of(table.sum(axis=0))},
        }
        resamples = [metrics_of(counts) for counts in np.einsum("ri,iab->rab", weights, table)]
        arrays = {
            "confusion": table.sum(axis=0),
            f"{PART}_resamples": np.array([[row[m] for row in resamples] for m in METRICS]),
        }
        save(job.file(out), metrics, arrays)
        return job


def names_of(dataset: CategoryDataset, sources: Sequence[str]) -> list[str]:
    """The defects to classify, in the order of their labels: those of the test images.

    Raises:
        UserError: If a source has others.
    """
    names = sorted({*dataset.part(TESTED).defects})
    for part in sorted({part for source in sources for part in source.split("+")}):
        others = sorted({*dataset.part(part).defects} - {*names})
        if others:
            raise UserError(
                f"{part}: has the defect {others[0]!r} of {dataset.category}, which no test "
                f"image has; {dataset.category}'s defects are {', '.join(names)}"
            )
    return names


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


def run_classification(config: ClassificationConfig) -> None:
    """Train the missing classifiers and write the report; the same call continues.

    Raises:
        UserError: If a setting or the data must be fixed.
    """
    categories = _several_defects(config.real.resolve(), config.category)
    network = config.network.resolve() if config.network else None
    classifier = Classifier(2, config.network)
    weights = weights_digest(network) if network else "random"
    budget = CLASSIFIER_BUDGETS[config.budget]
    cautions = [
        *caveats.of_budget(config.budget),
        *caveats.of_classifier(pretrained=network is not None),
        *caveats.of_folds(config.cross_validate, config.synthetic),
        *caveats.of_files(named_folders(config.synthetic)),
    ]
    caveats.print_caveats(cautions)
    plan = plan_comparison(config, budget, CONTROLS, categories, [TESTED])
    for folders in plan.folds.values() or [plan.folders]:
        for category in categories:
            names_of(CategoryDataset(folders, category), [job.source for job in plan.jobs])
    first = plan.folds.get(1, plan.folders)
    test = CategoryDataset(first, categories[0]).part(TESTED)
    announce(
        plan.jobs,
        plan.out,
        lambda: seconds_a_classifier(plan.budget, classifier, len(test)),
        yes=config.yes,
    )
    if plan.out is None:
        return
    plan.open_test("classification")
    experiment = Classification(
        plan.folders, plan.budget, network, weights, plan.data, plan.folds
    )
    start = f"weights {weights[:8]}" if network else "random weights"
    about = plan.about(config.budget, f"; {classifier.architecture} from {start}")
    with results_in(plan.out, "classification", config.tracking, plan.data_input()) as tracker:
        train_all(plan.jobs, experiment, plan.out, config.num_workers)
        title = "Does synthetic data help to tell defects apart?"
        _report(plan.jobs, experiment, Report(plan.out, title, cautions), about, tracker)


def _report(
    jobs: Sequence[TrainingJob],
    experiment: Classification,
    report: Report,
    about: str,
    tracker: Tracker,
) -> None:
    """Write tables and pictures, and log them."""
    out = report.out
    metrics = list(METRICS)
    rows = summary.summarise(jobs, out, PART, metrics)
    titles = ("Classification of defects", "")
    definition = (
        "of real defects outside the training third, last epoch; balanced: mean over a "
        "category's defects"
    )
    report.tables = summary.comparison_tables(
        rows, list(METRICS.values()), titles, definition, about
    )
    report.rows += summary.long_rows(rows, PART, metrics)
    for category in dict.fromkeys(job.category for job in jobs):
        by_source: dict[str, list[TrainingJob]] = {}
        for job in jobs:
            if job.category == category:
                by_source.setdefault(job.source, []).append(job)
                names = job.metrics(out)["names"]
        file = out / f"confusion-{category}.png"
        figures.confusion_plot(by_source, names, out, file)
        report.add_picture(f"{category}: what each defect was taken for, all seeds", file)
    settings = {
        "budget": experiment.schedule.model_dump(),
        "network": experiment.weights,
        "about": about,
    }
    report.publish(tracker, report.tables[0], settings, summary.flat_metrics(rows, metrics))


def _several_defects(root: Path, names: Sequence[str]) -> list[str]:
    """The categories with several defects; the others are printed."""
    folder = open_folder(root)
    categories = []
    for category in chosen_categories(folder, names):
        defects = folder.defect_types(category)
        if len(defects) > 1:
            categories.append(category)
        else:
            own = counted(len(defects), "defect")
            print(f"Left out: {category}, with {own} nothing to tell apart")
    if not categories:
        raise UserError(f"{root}: no category has two defects in test/<defect> to tell apart")
    return categories
