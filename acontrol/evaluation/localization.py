"""Does synthetic data make a detector better? Train one on each source, and compare them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acontrol.data.mvtec import open_folder
from acontrol.evaluation import figures, published, summary
from acontrol.evaluation.bootstrap import resample_weights, resampled
from acontrol.evaluation.budget import BUDGETS, Budget
from acontrol.evaluation.comparison import (
    check_out,
    checked_data,
    chosen_categories,
    compared,
    planned,
    say_how_long,
    train_all,
)
from acontrol.evaluation.dataset import (
    CONTROLS,
    DETECTOR,
    CategoryDataset,
    Folders,
    kept_dataset,
)
from acontrol.evaluation.estimate import seconds_a_detector
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.metrics import FloatArray, count, precision_recall
from acontrol.evaluation.protocol import (
    METRICS,
    PROTOCOLS,
    Protocol,
    Truth,
    chosen_epoch,
    score,
)
from acontrol.evaluation.report import Report
from acontrol.evaluation.results import TrainingJob, keep
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.evaluation.sources import MaskMaker
from acontrol.evaluation.trainer import anomaly_maps, train_detector
from acontrol.masks.perlin import perlin_blobs
from acontrol.runs.results import log, results_in
from acontrol.runs.tracking import Tracker

SHOWN = 4  # Test images whose maps are kept for the report.
_CURVE = 200  # Points of a kept curve.


@dataclass(frozen=True)
class Localization:
    """A detector is trained on normal images and a source, and tested.

    Attributes:
        folders: Where images are.
        budget: How long to train.
        protocols: What to report.
        data: For each category and source a digest of the images, of `dataset.check`.
        masks: Makes Perlin's blobs, a boolean (height, width) of this size.
    """

    folders: Folders
    budget: Budget
    protocols: Sequence[Protocol]
    data: Mapping[str, Mapping[str, str]]
    masks: MaskMaker

    @property
    def parts(self) -> tuple[str, ...]:
        """Metrics come by protocol."""
        return tuple(self.protocols)

    def facts(self, training: TrainingJob) -> dict[str, Any]:
        """What a training's result depends on."""
        return {
            "category": training.category,
            "source": training.source,
            "seed": training.seed,
            "budget": self.budget.model_dump(),
            "data": self.data[training.category][training.source],
        }

    def run(self, training: TrainingJob, out: Path) -> TrainingJob:
        """Train one detector, test it, and keep what came of it."""
        dataset = kept_dataset(self.folders, training.category, self.data[training.category])
        test = dataset.part("test")
        source = dataset.source(training.source, self.masks)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        truths = {one: Truth.of(test, one) for one in self.protocols}
        history: dict[Protocol, dict[int, dict[str, float]]] = {one: {} for one in truths}
        maps: dict[int, torch.Tensor] = {}
        losses = []
        trained = train_detector(
            self.budget, dataset.part("normals"), source, training.seed, device
        )
        for epoch, (detector, loss) in enumerate(trained, start=1):
            losses.append(loss)
            looked_at = [one for one in truths if one == "paper" or epoch == self.budget.epochs]
            if not looked_at:
                continue
            maps[epoch] = anomaly_maps(detector, test)
            for one in looked_at:
                history[one][epoch] = score(maps[epoch], truths[one])
            wanted = {chosen_epoch(epochs, one) for one, epochs in history.items() if epochs}
            maps = {one: maps[one] for one in wanted}
        result: dict[str, Any] = self.facts(training) | {"losses": losses}
        arrays: dict[str, Any] = {"shown": np.array(shown(test))}
        weights = resample_weights(test.anomalous, training.category)
        for protocol, epochs in history.items():
            best = chosen_epoch(epochs, protocol)
            found = maps[best]
            result[protocol] = {"epoch": best, **epochs[best]}
            arrays[f"{protocol}_resamples"] = resampled(found, truths[protocol], weights)
            arrays[f"{protocol}_curve"] = _curve(found, truths[protocol])
            arrays[f"{protocol}_maps"] = (found[arrays["shown"]] * 255).to(torch.uint8).numpy()
        keep(training.file(out), result, arrays)
        return training


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
    place = np.minimum(np.searchsorted(recall, grid), len(recall) - 1)
    return np.stack([grid, best[place]])


def run_localization(command: LocalizationConfig) -> None:
    """Train the missing detectors and write the report; the same call continues.

    Raises:
        UserError: If a setting or the data must be put right.
    """
    budget, folders, sources = compared(command, BUDGETS[command.budget], CONTROLS)
    categories = chosen_categories(open_folder(folders.root), command.category)
    check_out(command)
    trainings = planned(command, budget, categories, sources)
    folders, data, alike = checked_data(command, folders, categories, sources, DETECTOR)
    protocols = PROTOCOLS if command.protocol == "both" else (command.protocol,)
    if command.out is None or command.dry_run:
        test = CategoryDataset(folders, categories[0]).part("test")
        looks = 1 if protocols == ("strict",) else budget.epochs
        say_how_long(seconds_a_detector(budget, len(test), looks), len(trainings))
        return
    out = command.out.resolve()
    work = Localization(folders, budget, protocols, data, perlin_blobs)
    about = (
        f"Budget {command.budget}: {budget.describe()}. Data {folders.root.name}, categories: "
        f"{', '.join(categories)}; seeds: {command.seeds}.{alike}"
    )
    with results_in(out, "localization", command.tracking) as tracker:
        train_all(trainings, work, out, command.num_workers)
        _report(trainings, work, out, about, tracker)


def _report(
    trainings: Sequence[TrainingJob],
    work: Localization,
    out: Path,
    about: str,
    tracker: Tracker,
) -> None:
    """Write tables, curves and maps, and log them."""
    written = Report(out, "Does synthetic data help?")
    metrics = {}
    for protocol in work.protocols:
        rows = summary.summarise(trainings, out, protocol)
        tables = summary.tables(rows, protocol, about)
        written.tables += tables
        written.rows += summary.long_rows(rows, protocol)
        plot = out / f"precision-recall-{protocol}.png"
        figures.precision_recall_plot(trainings, out, protocol, plot)
        written.add_picture(f"Precision over recall, protocol {protocol}", plot)
        for source, row in rows.items():
            for name, value in zip(METRICS, row.values, strict=True):
                metrics[f"{protocol}/{source.replace('+', '_')}/{name}"] = float(value)
    written.tables.append(published.localization())
    protocol = work.protocols[-1]
    for category in dict.fromkeys(one.category for one in trainings):
        first = {
            one.source: one
            for one in trainings
            if one.category == category and one.seed == trainings[0].seed
        }
        test = CategoryDataset(work.folders, category).part("test")
        file = out / f"maps-{category}.png"
        figures.map_sheet(test, first, out, protocol).save(file)
        written.add_picture(f"{category}: anomaly maps of the first seed", file)
    files = written.write()
    log(tracker, {"budget": work.budget.model_dump(), "about": about}, metrics, files)
    print(tables[0].markdown())
    print(f"Look at {out / 'index.html'}")
    print(f"Results: {out / 'report.md'}")
