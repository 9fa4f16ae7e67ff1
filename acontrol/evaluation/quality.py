"""Quality of generated defects: Table 2's metrics, and what those miss.

Each defect type of a category is compared with the training third, which the generator may
have seen, and with the held-out rest. Means are over the defects of a category, then over
categories, as published.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from acontrol.data.images import region
from acontrol.data.mvtec import MvtecFolder
from acontrol.errors import UserError
from acontrol.evaluation.dataset import category_in
from acontrol.evaluation.features import Backend, Images, distances, in_batches
from acontrol.evaluation.generation_metrics import (
    cluster_diversity,
    cluster_members,
    inception_score,
    is_copy,
    kernel_distance,
)
from acontrol.evaluation.images import ImageSet, load
from acontrol.seeding import derive_seed

SIDE = 256  # Pixels at which images are compared, as published.
REAL = "real"  # The row of held-out images.
HALVES = "real, half against half"  # The yardstick: what two samples of real defects score.
_GREY = 127
# Surroundings: a generated image is a normal image with a defect, so it is compared with the
# normal image nearest to its surroundings. This works for any folder of pairs.
_LEVELS = 8  # A pixel has changed if a channel differs by more grey levels.
_RIM = 0.04  # Of the side, around the mask: generators feather their edges there.
_SMALL = 32  # Side at which the nearest normal image is searched.


@dataclass(frozen=True)
class Surroundings:
    """An image compared with the nearest normal image.

    Attributes:
        psnr: PSNR of the surroundings in dB; infinite if equal.
        fill: Share of the mask that differs, in [0, 1].
    """

    psnr: float
    fill: float


def compare_surroundings(
    images: UInt8[Tensor, "n 3 side side"],
    masks: Bool[Tensor, "n side side"],
    normals: UInt8[Tensor, "m 3 side side"],
) -> list[Surroundings]:
    """Compare each image with its nearest normal image."""
    thumbnails = _shrunk(normals.float())
    rim = round(_RIM * images.shape[-1])
    results = []
    for image, mask in zip(images, masks, strict=True):
        wide = F.max_pool2d(mask[None].float(), 2 * rim + 1, 1, rim)[0] > 0
        thumbnail = _shrunk(image[None].float())
        open_cells = _shrunk((~wide)[None, None].float()) == 1
        gap = ((thumbnails - thumbnail).square() * open_cells).flatten(1).sum(1)
        normal = normals[int(gap.argmin())].int()
        change = (image.int() - normal).abs()
        outside = change[:, ~wide].double().square()
        mse = float(outside.mean()) if outside.numel() else float("nan")
        psnr = float("inf") if mse == 0 else float(10 * torch.tensor(255**2 / mse).log10())
        fill = (change.amax(dim=0)[mask] > _LEVELS).double().mean()
        results.append(Surroundings(psnr, float(fill)))
    return results


def _shrunk(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, _SMALL)


@dataclass(frozen=True)
class DefectType:
    """The real images of a defect type: the training third, the rest, and good ones."""

    category: str
    defect: str
    training: ImageSet
    held_out: ImageSet
    normals: UInt8[Tensor, "m 3 side side"]
    single_category: bool = True

    @property
    def name(self) -> str:
        """CATEGORY/DEFECT."""
        return f"{self.category}/{self.defect}"


def read_defect_types(real: MvtecFolder, categories: Sequence[str]) -> list[DefectType]:
    """Read the real images.

    Raises:
        UserError: If an image is bad, or a category has no defects.
    """
    defect_types = []
    for category in categories:
        defects = real.defect_types(category)
        if not defects:
            raise UserError(
                f"{real.folders[category]}: has no folder of a defect in test/<defect>; real "
                "defects are what generated ones are compared with"
            )
        normals = load(real.normals(category), (), SIDE).images
        defect_types += [
            DefectType(
                category,
                defect,
                load((), real.labelled("train", category, defect), SIDE),
                load((), real.labelled("test", category, defect), SIDE),
                normals,
                len(real.folders) == 1,
            )
            for defect in defects
        ]
    return defect_types


def halves(defect_type: DefectType, seed: int = 0) -> DefectType:
    """A random half of all real images as the training images, the other as the held-out ones.

    Of an odd number the held-out half has one more.
    """
    images = defect_type.training + defect_type.held_out
    rng = np.random.default_rng(
        derive_seed("halves", defect_type.category, defect_type.defect, seed)
    )
    order = rng.permutation(len(images)).tolist()
    cut = len(images) // 2
    first, second = images.subset(order[:cut]), images.subset(order[cut:])
    return dataclasses.replace(defect_type, training=first, held_out=second)


def generated_images(folder: MvtecFolder, defect_type: DefectType, count: int) -> ImageSet:
    """The first pairs of a defect type in a generated folder; empty if it has none."""
    own = category_in(folder, defect_type.category, defect_type.single_category)
    if own is None or defect_type.defect not in folder.defect_types(own):
        return load((), (), SIDE)
    return load((), folder.labelled("all", own, defect_type.defect)[:count], SIDE)


def column_names(backends: Sequence[Backend]) -> list[str]:
    """Names of the metrics, in order, each with its network."""
    names = []
    for backend in backends:
        label = backend.label
        if backend.embed:
            names += [f"IS ({label})"] if backend.logits else []
            names += [f"KID x 1000 ({label})"]
        if backend.layers:
            metric = "IC-LPIPS" if backend.name.startswith("lpips") else "IC"
            names += [f"{metric} ({label})", f"{metric} in mask ({label})"]
            names += [f"copies, % ({label})"]
    return [*names, "mask-fill", "background PSNR, dB", "background exact, %"]


def measure(
    defect_type: DefectType, generated: ImageSet | None, backends: Sequence[Backend]
) -> dict[str, float]:
    """Metrics of images by `column_names`, NaN where undefined.

    Without generated images real ones are measured: the held-out ones, against the training
    third for KID.
    """
    images = defect_type.held_out if generated is None else generated
    reference = defect_type.training if generated is None else defect_type.held_out
    training = defect_type.training
    values: list[float] = []
    defects = training_defects = None
    for backend in backends:
        if backend.embed:
            vectors = in_batches(backend.embed, images.images)
            if backend.logits:
                values.append(inception_score(backend.logits(vectors)))
            other = in_batches(backend.embed, reference.images)
            values.append(1000 * kernel_distance(other, vectors))
        if backend.layers:
            if defects is None or training_defects is None:
                defects, training_defects = cut_out(images), cut_out(training)
            layers = backend.layers
            to_training = distances(layers, images.images, training.images)
            values.append(_diversity(layers, images.images, to_training))
            to_training = distances(layers, defects, training_defects)
            values.append(_diversity(layers, defects, to_training))
            among_training = distances(layers, training_defects, training_defects)
            copies = is_copy(to_training, among_training)
            same = np.isin(images.digests, training.digests)
            values.append(100 * float(np.mean(np.logical_or(copies, same))))
    if generated is not None and len(defect_type.normals):
        surroundings = compare_surroundings(images.images, images.masks, defect_type.normals)
        psnr = np.array([result.psnr for result in surroundings])
        inexact = psnr[np.isfinite(psnr)]
        values.append(float(np.mean([result.fill for result in surroundings])))
        values.append(float(np.mean(inexact)) if len(inexact) else inf)
        values.append(100 * float(np.mean(np.isinf(psnr))))
    else:
        values += [nan] * 3
    return dict(zip(column_names(backends), values, strict=True))


def mean_of(scores: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, float]:
    """Means over the defects of each category, then over categories.

    NaN is left out, and so is infinity (an exact background) unless nothing else is left.
    """
    means = {}
    for name in next(iter(scores.values())):
        by_category: dict[str, list[float]] = {}
        for (category, _), values in scores.items():
            by_category.setdefault(category, []).append(values[name])
        finite = [[v for v in row if isfinite(v)] for row in by_category.values()]
        category_means = [np.mean(row) for row in finite if row]
        exact = any(inf in row for row in by_category.values())
        means[name] = (
            float(np.mean(category_means)) if category_means else inf if exact else nan
        )
    return means


def cut_out(images: ImageSet) -> Images:
    """Each defect magnified, grey outside its mask."""
    views = []
    for image, mask in zip(images.images, images.masks, strict=True):
        blank = torch.where(mask, image, torch.full_like(image, _GREY))
        view, _ = region(
            Image.fromarray(blank.permute(1, 2, 0).numpy()),
            Image.fromarray(mask.numpy()),
            margin=0.1,
        )
        whole = view.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        views.append(torch.from_numpy(np.array(whole)).permute(2, 0, 1))
    return torch.stack(views)


def _diversity(
    layers: Callable[[Images], Sequence[Tensor]], images: Images, to_references: Tensor
) -> float:
    clusters = [images[members] for members in cluster_members(to_references)]
    return cluster_diversity([distances(layers, own, own) for own in clusters if len(own) > 1])
