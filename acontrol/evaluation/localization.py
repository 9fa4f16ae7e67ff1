"""Does synthetic data make a detector better? One training a category, source and seed.

    OUT/trainings/CATEGORY/SOURCE/seed-0.npz    resamples, a curve, some maps
    OUT/trainings/CATEGORY/SOURCE/seed-0.json   metrics; written last, so it stands for both

A training that is there is not done again.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from acontrol.config import UserError
from acontrol.data import procedural
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.evaluation.bootstrap import resample_weights, resampled
from acontrol.evaluation.budget import Budget
from acontrol.evaluation.curves import FloatArray, count, precision_recall
from acontrol.evaluation.pictures import Pictures, load, refuse_leaks
from acontrol.evaluation.protocol import (
    Protocol,
    chosen_epoch,
    ground_truth,
    score,
)
from acontrol.evaluation.sources import (
    CutPaste,
    MaskMaker,
    Mixed,
    Paired,
    PerlinTexture,
    Source,
)
from acontrol.evaluation.training import anomaly_maps, train

CONTROLS = ("none", "real", "perlin", "cutpaste")  # Sources that need no generator.
SHOWN = 4  # Test images whose maps are kept for the report.
_CURVE = 200  # Points of a kept curve.
_TEXTURES = 12  # Of each drawn material, for Perlin's blobs.


@dataclass(frozen=True)
class Training:
    """One detector to train.

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


@dataclass(frozen=True)
class Setting:
    """What all trainings of a comparison share.

    Attributes:
        root: The real data.
        synthetic: Folders of generated pairs, by name.
        budget: How long to train.
        protocols: What to report.
    """

    root: Path
    synthetic: Mapping[str, Path]
    budget: Budget
    protocols: Sequence[Protocol]


class Material:
    """The images of one category, read when they are first needed."""

    def __init__(self, setting: Setting, category: str):
        """Open the folders.

        Raises:
            UserError: If one is no data set, or lacks the category.
        """
        self.setting, self.category = setting, category
        self.real = open_folder(setting.root)
        self._parts: dict[str, Pictures] = {}

    def part(self, name: str) -> Pictures:
        """The pictures of "normals", "test", "real", or the pairs of a synthetic folder.

        Raises:
            UserError: If an image is bad, or there is none.
        """
        if name not in self._parts:
            self._parts[name] = self._load(name)
        return self._parts[name]

    def _load(self, name: str) -> Pictures:
        size, category = self.setting.budget.size, self.category
        where = self.real.folders.get(category, self.real.root)
        if name == "normals":
            normals = self.real.normals(category)
            if not normals:
                raise UserError(f"{where}: has no images in train/good; put good images there")
            return load(normals, (), size)
        if name == "real":
            return load((), self.real.labelled("train", category), size)
        if name == "test":
            defects = self.real.labelled("test", category)
            good = self.real.normals(category, "test")
            if not defects:
                raise UserError(
                    f"{where}: has no images of defects in test/<defect>; they are what a "
                    "detector is tested on"
                )
            if not good:
                raise UserError(
                    f"{where}: has no images in test/good; image-level metrics need both"
                )
            return load(good, defects, size)
        folder = open_folder(self.setting.synthetic[name])
        own = _category_of(folder, category)
        kinds = folder.defect_types(own)
        pairs = [
            one
            for kind in kinds
            for one in folder.labelled("all", own, kind)[: self.setting.budget.pairs]
        ]
        if not pairs:
            raise UserError(
                f"{folder.folders[own]}: has no images of defects in test/<defect>; give a "
                "folder as launch.generate writes it"
            )
        return load((), pairs, size)

    def source(self, name: str, masks: MaskMaker) -> Source | None:
        """What makes the defective half of the training images."""
        if name == "none":
            return None
        parts = [self._source(part, masks) for part in name.split("+")]
        return parts[0] if len(parts) == 1 else Mixed(parts)

    def _source(self, name: str, masks: MaskMaker) -> Source:
        if name == "perlin":
            return PerlinTexture(self.part("normals"), masks, self._textures())
        if name == "cutpaste":
            return CutPaste(self.part("normals"))
        return Paired(self.part(name))

    def _textures(self) -> list[Image.Image]:
        """Drawn materials, none of the product's name: DRAEM's are photographs (DTD)."""
        return [
            Image.fromarray(
                procedural.draw(
                    name, "good", seed=seed, resolution=self.setting.budget.size
                ).image
            )
            for name in procedural.CATEGORIES
            if name != self.category
            for seed in range(_TEXTURES)
        ]


def pictures_of(source: str) -> list[str]:
    """The parts of the data that a source trains on, besides normal images."""
    return [part for part in source.split("+") if part not in ("none", "perlin", "cutpaste")]


def check(setting: Setting, category: str, sources: Sequence[str]) -> dict[str, str]:
    """Read everything once, and refuse what leaks.

    Returns:
        For each source a digest of all the images that its trainings see.

    Raises:
        UserError: If an image or a mask is bad or missing, or a test image is trained on.
    """
    material = Material(setting, category)
    test, normals = material.part("test"), material.part("normals")
    names = sorted({part for source in sources for part in pictures_of(source)})
    refuse_leaks(test, [normals, *(material.part(name) for name in names)])
    return {
        source: _digest([test, normals, *(material.part(part) for part in pictures_of(source))])
        for source in sources
    }


def run(
    training: Training, setting: Setting, data: str, masks: MaskMaker, out: Path
) -> Training:
    """Train one detector, test it, and write what came of it.

    Args:
        training: Which.
        setting: What it shares with the others.
        data: Digest of its images, of `check`.
        masks: Makes Perlin's blobs, a boolean (height, width) of this size.
        out: The comparison's folder.
    """
    material = Material(setting, training.category)
    test = material.part("test")
    source = material.source(training.source, masks)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    history: dict[Protocol, dict[int, dict[str, float]]] = {
        one: {} for one in setting.protocols
    }
    maps: dict[int, torch.Tensor] = {}
    losses = []
    trained = train(setting.budget, material.part("normals"), source, training.seed, device)
    for epoch, (detector, loss) in enumerate(trained, start=1):
        losses.append(loss)
        if epoch < setting.budget.epochs and "paper" not in setting.protocols:
            continue
        maps[epoch] = anomaly_maps(detector, test)
        for protocol, epochs in history.items():
            epochs[epoch] = score(maps[epoch], test, protocol)
        wanted = {chosen_epoch(epochs, protocol) for protocol, epochs in history.items()}
        maps = {one: maps[one] for one in wanted}
    result: dict[str, Any] = facts(training, setting, data) | {"losses": losses}
    arrays: dict[str, Any] = {"shown": np.array(shown(test))}
    weights = resample_weights(test.anomalous, 0)
    for protocol, epochs in history.items():
        best = chosen_epoch(epochs, protocol)
        found = maps[best]
        result[protocol] = {"epoch": best, **epochs[best]}
        arrays[f"{protocol}_resamples"] = resampled(found, test, protocol, weights)
        arrays[f"{protocol}_curve"] = _curve(found, test, protocol)
        arrays[f"{protocol}_maps"] = (found[arrays["shown"]] * 255).to(torch.uint8).numpy()
    _write(training.file(out), result, arrays)
    return training


def facts(training: Training, setting: Setting, data: str) -> dict[str, Any]:
    """What a training's result depends on."""
    return {
        "category": training.category,
        "source": training.source,
        "seed": training.seed,
        "budget": setting.budget.model_dump(),
        "data": data,
    }


def is_done(training: Training, setting: Setting, data: str, out: Path) -> bool:
    """Whether its result is there, for these protocols.

    Raises:
        UserError: If what is there is another training's.
    """
    file = training.file(out)
    if not file.is_file():
        return False
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error}); remove it") from error
    expected = facts(training, setting, data)
    changed = [name for name, value in expected.items() if found.get(name) != value]
    if changed:
        raise UserError(
            f"{file}: is of another comparison (differs in {', '.join(changed)}); name another "
            "--out, or give the same data and budget to continue this one"
        )
    return all(protocol in found for protocol in setting.protocols)


def shown(test: Pictures) -> list[int]:
    """Places of the test images that the report shows: the first of each defect, in turn."""
    by_kind = [
        [place for place, one in enumerate(test.kinds) if one == kind]
        for kind in sorted(set(test.kinds) - {"good"})
    ]
    rounds = max(len(one) for one in by_kind)
    turns = [one[turn] for turn in range(rounds) for one in by_kind if turn < len(one)]
    return turns[:SHOWN]


def _category_of(folder: MvtecFolder, category: str) -> str:
    """The folder's category; a folder that is itself one stands for any."""
    return (
        category
        if category in folder.folders or len(folder.folders) > 1
        else (folder.categories[0])
    )


def _digest(parts: Sequence[Pictures]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(json.dumps([part.digests, part.kinds]).encode())
        whole.update(part.masks.numpy().tobytes())
    return whole.hexdigest()


def _curve(maps: torch.Tensor, test: Pictures, protocol: Protocol) -> FloatArray:
    """Pixel precision at evenly spaced recalls, the best at that recall or more."""
    truth = ground_truth(test, protocol)
    precision, recall = precision_recall(count(maps.numpy(), truth))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    grid = np.linspace(0, 1, _CURVE)
    place = np.minimum(np.searchsorted(recall, grid), len(recall) - 1)
    return np.stack([grid, best[place]])


def _write(file: Path, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.stem}.partial.npz")
    np.savez_compressed(partial, **arrays)
    os.replace(partial, file.with_suffix(".npz"))
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(result, indent=1))
    os.replace(partial, file)
