"""Does synthetic data make a detector better? Train one on each source, and compare them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acontrol.data.mvtec import open_folder
from acontrol.evaluation import caveats, figures, published, summary
from acontrol.evaluation.bootstrap import resample_weights, resampled
from acontrol.evaluation.budget import BUDGETS, Budget
from acontrol.evaluation.comparison import (
    announce,
    chosen_categories,
    plan_comparison,
    train_all,
)
from acontrol.evaluation.dataset import (
    CONTROLS,
    DETECTOR,
    CategoryDataset,
    Folders,
    cached_dataset,
)
from acontrol.evaluation.estimate import seconds_a_detector
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.metrics import FloatArray, count, precision_recall
from acontrol.evaluation.protocol import (
    PROTOCOLS,
    Protocol,
    Truth,
    chosen_epoch,
    score,
)
from acontrol.evaluation.report import Report
from acontrol.evaluation.results import TrainingJob, save
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.evaluation.sources import MaskMaker
from acontrol.evaluation.trainer import anomaly_maps, train_detector
from acontrol.masks.perlin import perlin_blobs
from acontrol.runs.results import results_in
from acontrol.runs.tracking import Tracker

SHOWN = 4  # Test images whose maps are saved for the report.
_CURVE = 200  # Points of a saved curve.


@dataclass(frozen=True)
class Localization:
    """Trains a detector on normal images and a source, and tests it.

    Attributes:
        folders: Where images are.
        budget: How long to train.
        protocols: Protocols to report.
        data: Digests of the images by category and source, from `dataset.check`.
        masks: Makes Perlin's blobs, boolean (height, width).
    """

    folders: Folders
    budget: Budget
    protocols: Sequence[Protocol]
    data: Mapping[str, Mapping[str, str]]
    masks: MaskMaker

    @property
    def parts(self) -> tuple[str, ...]:
        """Metrics are grouped by protocol."""
        return tuple(self.protocols)

    def metadata(self, job: TrainingJob) -> dict[str, Any]:
        """What a training's result depends on."""
        return job.metadata(self.budget, self.data)

    def run(self, job: TrainingJob, out: Path) -> TrainingJob:
        """Train a detector, test it, and save the result."""
        dataset = cached_dataset(self.folders, job.category, self.data[job.category])
        test = dataset.part("test")
        source = dataset.source(job.source, self.masks)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        truths = {protocol: Truth.of(test, protocol) for protocol in self.protocols}
        history: dict[Protocol, dict[int, dict[str, float]]] = {name: {} for name in truths}
        maps: dict[int, torch.Tensor] = {}
        losses = []
        epochs = train_detector(self.budget, dataset.part("normals"), source, job.seed, device)
        for epoch, (detector, loss) in enumerate(epochs, start=1):
            losses.append(loss)
            due = [name for name in truths if name == "paper" or epoch == self.budget.epochs]
            if not due:
                continue
            maps[epoch] = anomaly_maps(detector, test)
            for protocol in due:
                history[protocol][epoch] = score(maps[epoch], truths[protocol])
            best = {chosen_epoch(scores, name) for name, scores in history.items() if scores}
            maps = {epoch: maps[epoch] for epoch in best}
        metrics: dict[str, Any] = self.metadata(job) | {"losses": losses}
        arrays: dict[str, Any] = {"shown": np.array(shown(test))}
        weights = resample_weights(test.anomalous, job.category)
        for protocol, scores in history.items():
            epoch = chosen_epoch(scores, protocol)
            own = maps[epoch]
            metrics[protocol] = {"epoch": epoch, **scores[epoch]}
            arrays[f"{protocol}_resamples"] = resampled(own, truths[protocol], weights)
            arrays[f"{protocol}_curve"] = _curve(own, truths[protocol])
            arrays[f"{protocol}_maps"] = (own[arrays["shown"]] * 255).to(torch.uint8).numpy()
        save(job.file(out), metrics, arrays)
        return job


def shown(test: ImageSet) -> list[int]:
    """Indices of the test images in the report: the first ones of each defect, in turn."""
    groups = [
        [index for index, other in enumerate(test.defects) if other == defect]
        for defect in sorted(set(test.defects) - {"good"})
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return [index for index in turns if index is not None][:SHOWN]


def _curve(maps: torch.Tensor, truth: Truth) -> FloatArray:
    """Pixel precision at evenly spaced recalls, the best at that recall or more."""
    (counts,) = count(maps.numpy(), truth.pixels)
    precision, recall = precision_recall(counts)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    grid = np.linspace(0, 1, _CURVE)
    index = np.minimum(np.searchsorted(recall, grid), len(recall) - 1)
    return np.stack([grid, best[index]])


def run_localization(config: LocalizationConfig) -> None:
    """Train the missing detectors and write the report; the same call continues.

    Raises:
        UserError: If a setting or the data must be fixed.
    """
    categories = chosen_categories(open_folder(config.real.resolve()), config.category)
    cautions = caveats.of_budget(config.budget)
    caveats.print_caveats(cautions)
    plan = plan_comparison(config, BUDGETS[config.budget], CONTROLS, categories, DETECTOR)
    protocols = PROTOCOLS if config.protocol == "both" else (config.protocol,)
    test = CategoryDataset(plan.folders, categories[0]).part("test")
    rounds = 1 if protocols == ("strict",) else plan.budget.epochs
    announce(
        plan.jobs,
        plan.out,
        lambda: seconds_a_detector(plan.budget, len(test), rounds),
        yes=config.yes,
    )
    if plan.out is None:
        return
    experiment = Localization(plan.folders, plan.budget, protocols, plan.data, perlin_blobs)
    with results_in(plan.out, "localization", config.tracking, plan.data_input()) as tracker:
        train_all(plan.jobs, experiment, plan.out, config.num_workers)
        report = Report(plan.out, "Does synthetic data help?", cautions)
        _report(plan.jobs, experiment, report, plan.about(config.budget), tracker)


def _report(
    jobs: Sequence[TrainingJob],
    experiment: Localization,
    report: Report,
    about: str,
    tracker: Tracker,
) -> None:
    """Write tables, curves and maps, and log them."""
    out = report.out
    metrics: dict[str, float] = {}
    for protocol in experiment.protocols:
        rows = summary.summarise(jobs, out, protocol)
        tables = summary.tables(rows, protocol, about)
        report.tables += tables
        report.rows += summary.long_rows(rows, protocol)
        plot = out / f"precision-recall-{protocol}.png"
        figures.precision_recall_plot(jobs, out, protocol, plot)
        report.add_picture(f"Precision over recall, protocol {protocol}", plot)
        values = summary.flat_metrics(rows)
        metrics |= {f"{protocol}/{name}": value for name, value in values.items()}
    report.tables.append(published.localization())
    for category in dict.fromkeys(job.category for job in jobs):
        first = {
            job.source: job
            for job in jobs
            if job.category == category and job.seed == jobs[0].seed
        }
        test = CategoryDataset(experiment.folders, category).part("test")
        file = out / f"maps-{category}.png"
        figures.map_sheet(test, first, out, experiment.protocols[-1]).save(file)
        report.add_picture(f"{category}: anomaly maps of the first seed", file)
    settings = {"budget": experiment.budget.model_dump(), "about": about}
    report.publish(tracker, tables[0], settings, metrics)
