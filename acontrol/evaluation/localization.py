"""Train a detector on a source, and test it: one training of a comparison."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acontrol.evaluation import lite0, summary
from acontrol.evaluation.bootstrap import resample_weights, resampled
from acontrol.evaluation.budget import (
    ON_FEATURES,
    DetectorBudget,
    DetectorName,
)
from acontrol.evaluation.dataset import (
    CategoryDataset,
    Folders,
    cached_dataset,
)
from acontrol.evaluation.metrics import Counts, FloatArray, count, precision_recall
from acontrol.evaluation.protocol import (
    Protocol,
    Truth,
    chosen_epoch,
    score,
)
from acontrol.evaluation.results import TrainingJob, save
from acontrol.evaluation.sources import Images, MaskMaker
from acontrol.evaluation.tally import Tally
from acontrol.evaluation.tiles import WholeImages, logit_map, resized
from acontrol.evaluation.trainer import anomaly_maps, train_detector

SHOWN = 4  # Test images whose maps are saved for the report.
KEPT_MAP, KEPT_WEIGHT = "logits/", "weight/"  # Prefixes of saved arrays: by image, by name.
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
        budgets: Budgets of detectors that have one of their own.
        folds: Where images of each fold of a cross-validation are.
        keep: Save each detector and its map of every test image too, of tiles alone.
    """

    folders: Folders
    budget: DetectorBudget
    protocols: Sequence[Protocol]
    data: Mapping[str, Mapping[str, str]]
    masks: MaskMaker
    budgets: Mapping[DetectorName, DetectorBudget] = field(default_factory=dict)
    folds: Mapping[int, Folders] = field(default_factory=dict)
    keep: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Metrics are grouped by protocol."""
        return tuple(self.protocols)

    def metadata(self, job: TrainingJob) -> dict[str, Any]:
        """What a training's result depends on."""
        features = {"features": lite0.record()} if job.detector in ON_FEATURES else {}
        return job.metadata(self.budget_of(job), self.data, **features)

    def budget_of(self, job: TrainingJob) -> DetectorBudget:
        """The budget of a training."""
        return self.budgets.get(job.detector, self.budget)

    def run(self, job: TrainingJob, out: Path) -> TrainingJob:
        """Train a detector, test it, and save the result."""
        folders = self.folds.get(job.fold, self.folders)
        dataset = cached_dataset(folders, job.category, self.data[job.unit])
        budget = self.budget_of(job)
        if budget.tile is not None:
            return self._run_tiles(job, out, dataset, budget)
        test = dataset.part("test")
        source = dataset.source(job.source, self.masks, budget)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        truths = {protocol: Truth.of(test, protocol) for protocol in self.protocols}
        history: dict[Protocol, dict[int, dict[str, float]]] = {name: {} for name in truths}
        maps: dict[int, torch.Tensor] = {}
        losses = []
        normals = dataset.part("normals")
        clean = dataset.clean(job.source, budget)
        epochs = train_detector(budget, normals, source, job.seed, device, job.detector, clean)
        for epoch, (detector, loss) in enumerate(epochs, start=1):
            losses.append(loss)
            due = [name for name in truths if name == "paper" or epoch == budget.epochs]
            if not due:
                continue
            maps[epoch] = anomaly_maps(detector, test)
            for protocol in due:
                history[protocol][epoch] = score(maps[epoch], truths[protocol])
            best = {chosen_epoch(scores, name) for name, scores in history.items() if scores}
            maps = {epoch: maps[epoch] for epoch in best}
        metrics: dict[str, Any] = self.metadata(job) | {"losses": losses}
        arrays: dict[str, Any] = {"shown": np.array(shown(test))}
        groups = dataset.groups_of(test.files)
        weights = resample_weights(test.anomalous, job.unit, groups)
        for protocol, scores in history.items():
            epoch = chosen_epoch(scores, protocol)
            own = maps[epoch]
            metrics[protocol] = {"epoch": epoch, **scores[epoch]}
            arrays[f"{protocol}_resamples"] = resampled(own, truths[protocol], weights)
            for defect, images in by_defect(test.defects).items():
                truth = truths[protocol].subset(images)
                values = metrics[protocol].setdefault(summary.BY_DEFECT, {})
                values[defect] = score(own[images], truth)
                some = None if groups is None else groups[images]
                drawn = resample_weights(truth.images, f"{job.unit}/{defect}", some)
                drawn = resampled(own[images], truth, drawn)
                arrays[f"{protocol}_resamples_{defect}"] = drawn
            (counts,) = count(own.numpy(), truths[protocol].pixels)
            arrays[f"{protocol}_curve"] = _curve(counts)
            arrays[f"{protocol}_maps"] = (own[arrays["shown"]] * 255).to(torch.uint8).numpy()
        save(job.file(out), metrics, arrays)
        return job

    def _run_tiles(
        self, job: TrainingJob, out: Path, dataset: CategoryDataset, budget: DetectorBudget
    ) -> TrainingJob:
        """The same on crops, tested on whole images by protocol strict."""
        assert budget.tile is not None
        test = dataset.images("test", budget)
        assert isinstance(test, WholeImages)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        epochs = [
            *train_detector(
                budget,
                dataset.images("normals", budget),
                dataset.source(job.source, self.masks, budget),
                job.seed,
                device,
                job.detector,
                dataset.clean(job.source, budget),
            )
        ]
        detector, _ = epochs[-1]
        pictures = shown(test)
        maps, kept = {}, {}
        tally = Tally(budget.tile)
        for index, defect in enumerate(test.defects):
            image, mask = test.read(index)
            logits = logit_map(detector, image, budget.tile)
            tally.add(logits, mask, defect)
            if self.keep:
                kept[f"{KEPT_MAP}{index}"] = logits.half().numpy()
            if index in pictures:
                maps[index] = resized(logits.sigmoid(), budget.size)
        images = range(len(test))
        scores: dict[str, Any] = {"epoch": budget.epochs, **tally.score(images)}
        groups = dataset.groups_of(test.files)
        weights = resample_weights(test.anomalous, job.unit, groups)
        arrays: dict[str, Any] = {
            "shown": np.array(pictures),
            "strict_resamples": tally.resampled(images, weights),
            "strict_curve": _curve(tally.pixels([*dict.fromkeys(test.defects)])[0]),
            "strict_maps": np.stack([maps[index].numpy() for index in pictures]),
            **kept,
        }
        if self.keep:
            weights_of = detector.state_dict().items()
            arrays |= {
                f"{KEPT_WEIGHT}{name}": value.cpu().numpy() for name, value in weights_of
            }
        for defect, own in by_defect(test.defects).items():
            scores.setdefault(summary.BY_DEFECT, {})[defect] = tally.score(own)
            some = None if groups is None else groups[own]
            weights = resample_weights(test.anomalous[own], f"{job.unit}/{defect}", some)
            arrays[f"strict_resamples_{defect}"] = tally.resampled(own, weights)
        losses = [loss for _, loss in epochs]
        save(job.file(out), self.metadata(job) | {"losses": losses, "strict": scores}, arrays)
        return job


def shown(test: Images) -> list[int]:
    """Indices of the test images in the report: the first ones of each defect, in turn."""
    groups = [
        [index for index, other in enumerate(test.defects) if other == defect]
        for defect in sorted(set(test.defects) - {"good"})
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return [index for index in turns if index is not None][:SHOWN]


def by_defect(defects: Sequence[str]) -> dict[str, list[int]]:
    """Indices of each defect's images and of the good ones; empty for a single defect."""
    names = sorted({*defects} - {"good"})
    if len(names) < 2:
        return {}
    return {
        name: [n for n, defect in enumerate(defects) if defect in (name, "good")]
        for name in names
    }


def _curve(counts: Counts) -> FloatArray:
    """Pixel precision at evenly spaced recalls, the best at that recall or more."""
    precision, recall = precision_recall(counts)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    grid = np.linspace(0, 1, _CURVE)
    index = np.minimum(np.searchsorted(recall, grid), len(recall) - 1)
    return np.stack([grid, best[index]])
