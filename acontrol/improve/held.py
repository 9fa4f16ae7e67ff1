"""What detectors say of training images that they were not trained on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from acontrol.data.images import read_image
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.pieces import training_images
from acontrol.errors import UserError, one_line
from acontrol.evaluation.budget import Budget, DetectorName
from acontrol.evaluation.dataset import CategoryDataset, Folders
from acontrol.evaluation.localization import KEPT_MAP, KEPT_WEIGHT
from acontrol.evaluation.results import TrainingJob
from acontrol.evaluation.tiles import WholeImages, logit_map
from acontrol.evaluation.trainer import restored
from acontrol.improve.misses import Held

_LIMIT = 16.0  # Logits at which a map is 0 and 1.
_SUFFIXES = (".npy", ".tiff", ".tif", ".png")

FloatMap = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Folds:
    """The trained detectors of a source, and what each fold holds out.

    Attributes:
        real: The data.
        categories: Those compared.
        folders: Where images of each fold are.
        budget: Of the detectors.
        detector: Their kind.
        seeds: Detectors per fold; their logits are averaged.
        out: Folder of the trainings.
    """

    real: MvtecFolder
    categories: Sequence[str]
    folders: Mapping[int, Folders]
    budget: Budget
    detector: DetectorName
    seeds: int
    out: Path

    def jobs(self, source: str) -> tuple[TrainingJob, ...]:
        """All trainings of a source."""
        return tuple(
            TrainingJob(category, source, seed, self.detector, fold)
            for category in self.categories
            for fold in self.folders
            for seed in range(self.seeds)
        )

    def read(self, source: str, category: str) -> Iterator[Held]:
        """Every training image of a category once, with its map at the image's own size."""
        for fold, folders in self.folders.items():
            dataset = CategoryDataset(folders, category)
            images = dataset.images("test", self.budget.model_copy(update={"tile_scale": 1.0}))
            assert isinstance(images, WholeImages)
            jobs = [
                job for job in self.jobs(source) if (job.category, job.fold) == (category, fold)
            ]
            for index, file in enumerate(images.files):
                image, mask = images.read(index)
                kept = [job.array(self.out, f"{KEPT_MAP}{index}") for job in jobs]
                mean = torch.from_numpy(np.mean(kept, axis=0, dtype=np.float32))
                yield Held(
                    self.real.name_of(category, file),
                    images.defects[index],
                    fold,
                    image.permute(1, 2, 0).numpy(),
                    mask.numpy(),
                    _levels(mean, (image.shape[-1], image.shape[-2])),
                )

    def detectors(self, source: str, category: str, fold: int) -> list[torch.nn.Module]:
        """The trained detectors of a fold."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = []
        for job in self.jobs(source):
            if (job.category, job.fold) == (category, fold):
                with np.load(job.file(self.out).with_suffix(".npz")) as arrays:
                    weights = {
                        name.removeprefix(KEPT_WEIGHT): torch.from_numpy(arrays[name])
                        for name in arrays.files
                        if name.startswith(KEPT_WEIGHT)
                    }
                found.append(restored(self.detector, self.budget, weights, device))
        return found

    def score(self, detectors: Sequence[torch.nn.Module], file: Path) -> FloatMap:
        """The map of another image by some detectors, at its own size."""
        assert self.budget.tile is not None
        image = Image.fromarray(read_image(file))
        size = image.size
        if self.budget.tile_scale != 1:
            width, height = (max(1, round(self.budget.tile_scale * length)) for length in size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        maps = [logit_map(detector, pixels, self.budget.tile) for detector in detectors]
        return _levels(torch.stack(maps).mean(dim=0), size)


def read_predictions(
    folder: Path, real: MvtecFolder, categories: Sequence[str], category: str
) -> Iterator[Held]:
    """Every training image of a category, with another detector's map of it.

    Maps are of any size and range; they are brought to [0, 1] by the least and highest value
    of the category's.

    Raises:
        UserError: If a map is missing, is no picture of one channel or is not finite.
    """
    root = (
        folder
        if len(categories) == 1 and not (folder / category).is_dir()
        else folder / category
    )
    rows: list[tuple[Path, LabelledImage | None]] = [
        *((file, None) for file in real.normals(category)),
        *((row.image, row) for row in training_images(real, category)),
    ]
    files = [_map_file(root, image.relative_to(real.folders[category])) for image, _ in rows]
    limits = [(float(own.min()), float(own.max())) for own in map(_read_map, files)]
    low, high = min(one for one, _ in limits), max(one for _, one in limits)
    for (image, row), file in zip(rows, files, strict=True):
        pixels = read_image(image)
        own = torch.from_numpy((_read_map(file) - low) / max(high - low, 1e-12))
        yield Held(
            real.name_of(category, image),
            "good" if row is None else row.defect,
            0,
            pixels,
            np.zeros(pixels.shape[:2], bool) if row is None else row.read_mask(),
            _resized(own, (pixels.shape[1], pixels.shape[0])).clamp(0, 1).numpy(),
        )


def _map_file(root: Path, image: Path) -> Path:
    files = [(root / image).with_suffix(suffix) for suffix in _SUFFIXES]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(
            f"--predictions: no map {files[1]} (or .npy, .tif, .png); give one for every "
            "training image, the good ones too"
        )
    return found


def _read_map(file: Path) -> FloatMap:
    try:
        if file.suffix == ".npy":
            values = np.load(file)  # Refuses pickles.
        else:
            with Image.open(file) as image:
                values = np.asarray(image)
        values = np.squeeze(values).astype(np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: is no anomaly map ({one_line(error)})") from error
    if values.ndim != 2 or not np.isfinite(values).all():
        raise UserError(f"{file}: is no anomaly map: need one finite number for each pixel")
    return values


def _levels(logits: Tensor, size: tuple[int, int]) -> FloatMap:
    share = (logits.float() + _LIMIT) / (2 * _LIMIT)
    return _resized(share, size).clamp(0, 1).numpy()


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(values.shape) == (size[1], size[0]):
        return values
    return F.interpolate(values[None, None], (size[1], size[0]), mode="bilinear")[0, 0]
