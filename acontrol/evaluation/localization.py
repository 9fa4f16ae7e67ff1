"""Does synthetic data make a detector better? The work of one training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acontrol.evaluation.bootstrap import resample_weights, resampled
from acontrol.evaluation.budget import Budget
from acontrol.evaluation.dataset import Folders, kept_dataset
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.metrics import FloatArray, count, precision_recall
from acontrol.evaluation.protocol import Protocol, Truth, chosen_epoch, score
from acontrol.evaluation.results import TrainingJob, keep
from acontrol.evaluation.sources import MaskMaker
from acontrol.evaluation.trainer import anomaly_maps, train_detector

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
    """Places of the test images that the report shows: the first of each defect, in turn."""
    by_kind = [
        [place for place, one in enumerate(test.kinds) if one == kind]
        for kind in sorted(set(test.kinds) - {"good"})
    ]
    rounds = max(len(one) for one in by_kind)
    turns = [one[turn] for turn in range(rounds) for one in by_kind if turn < len(one)]
    return turns[:SHOWN]


def _curve(maps: torch.Tensor, truth: Truth) -> FloatArray:
    """Pixel precision at evenly spaced recalls, the best at that recall or more."""
    (counts,) = count(maps.numpy(), truth.pixels)
    precision, recall = precision_recall(counts)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    grid = np.linspace(0, 1, _CURVE)
    place = np.minimum(np.searchsorted(recall, grid), len(recall) - 1)
    return np.stack([grid, best[place]])
