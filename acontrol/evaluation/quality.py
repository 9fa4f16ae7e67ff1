"""How good generated defects are: Table 2's scores, and what those cannot see.

Kind by kind (a defect of a category) against the training third, which the generator may know,
and the held-out rest, which it may not. Means are over the defects of a category, then over
categories, as published.
"""

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

# Surroundings: a generated image is a normal image with a defect, so it is compared with the
# normal image that its surroundings are nearest to. Works on any folder of pairs.
_LEVELS = 8  # A pixel has changed if a channel differs by more grey levels.
_RIM = 0.04  # Of the side, around the mask: generators feather their edges there.
_SMALL = 32  # Side at which candidates are looked for.


@dataclass(frozen=True)
class Surroundings:
    """Of one image.

    Attributes:
        psnr: Of the surroundings against the nearest normal image, in dB; infinite if equal.
        fill: Share of the mask that differs from it, in [0, 1].
    """

    psnr: float
    fill: float


def compare(
    images: UInt8[Tensor, "n 3 side side"],
    masks: Bool[Tensor, "n side side"],
    normals: UInt8[Tensor, "m 3 side side"],
) -> list[Surroundings]:
    """Compare each image with its nearest normal image."""
    thumbnails = _shrunk(normals.float())
    rim = round(_RIM * images.shape[-1])
    found = []
    for image, mask in zip(images, masks, strict=True):
        wide = F.max_pool2d(mask[None].float(), 2 * rim + 1, 1, rim)[0] > 0
        seen = _shrunk(image[None].float())
        open_cells = _shrunk((~wide)[None, None].float()) == 1
        gap = ((thumbnails - seen).square() * open_cells).flatten(1).sum(1)
        normal = normals[int(gap.argmin())].int()
        change = (image.int() - normal).abs()
        outside = change[:, ~wide].double().square()
        mse = float(outside.mean()) if outside.numel() else float("nan")
        psnr = float("inf") if mse == 0 else float(10 * torch.tensor(255**2 / mse).log10())
        fill = (change.amax(dim=0)[mask] > _LEVELS).double().mean()
        found.append(Surroundings(psnr, float(fill)))
    return found


def _shrunk(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, _SMALL)


SIDE = 256  # Pixels at which images are compared, as published.
REAL = "real"  # The row that real images make.
_GREY = 127


@dataclass(frozen=True)
class DefectType:
    """One defect of one category.

    Attributes:
        category: Product.
        defect: Defect.
        training: The training third.
        held_out: The rest.
        normals: Good images for training.
        alone: Whether the data set has no other category.
    """

    category: str
    defect: str
    training: ImageSet
    held_out: ImageSet
    normals: UInt8[Tensor, "m 3 side side"]
    alone: bool = True


def kinds_of(real: MvtecFolder, categories: Sequence[str]) -> list[DefectType]:
    """Read the real images.

    Raises:
        UserError: If one is bad, or a category has no defects.
    """
    found = []
    for category in categories:
        defects = real.defect_types(category)
        if not defects:
            raise UserError(
                f"{real.folders[category]}: has no folder of a defect in test/<defect>; real "
                "defects are what generated ones are compared with"
            )
        normals = load(real.normals(category), (), SIDE).images
        found += [
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
    return found


def synthetic_of(folder: MvtecFolder, kind: DefectType, count: int) -> ImageSet:
    """The first pairs of a kind in a generated folder; none where it has not got the kind."""
    own = category_in(folder, kind.category, kind.alone)
    if own is None or kind.defect not in folder.defect_types(own):
        return load((), (), SIDE)
    return load((), folder.labelled("all", own, kind.defect)[:count], SIDE)


def column_names(backends: Sequence[Backend]) -> list[str]:
    """What is measured, in order, each with the network that it is measured by."""
    names = []
    for one in backends:
        if one.embed:
            names += [f"IS ({one.label})"] if one.logits else []
            names += [f"KID x 1000 ({one.label})"]
        if one.layers:
            letters = "IC-LPIPS" if one.name.startswith("lpips") else "IC"
            names += [f"{letters} ({one.label})", f"{letters} in mask ({one.label})"]
            names += [f"copies, % ({one.label})"]
    return [*names, "mask-fill", "background PSNR, dB", "background exact, %"]


def measure(
    kind: DefectType, generated: ImageSet | None, backends: Sequence[Backend]
) -> dict[str, float]:
    """Every score of the images of one kind, by `column_names`; NaN where there is none.

    Args:
        kind: What they should look like.
        generated: At least one image. Without, the real ones are scored: those held out, and
            for KID, which compares with these, the training third.
        backends: Networks.
    """
    pictures = kind.held_out if generated is None else generated
    compared = kind.training if generated is None else kind.held_out
    values: list[float] = []
    defects = training_defects = None
    for one in backends:
        if one.embed:
            vectors = in_batches(one.embed, pictures.images)
            if one.logits:
                values.append(inception_score(one.logits(vectors)))
            other = in_batches(one.embed, compared.images)
            values.append(1000 * kernel_distance(other, vectors))
        if one.layers:
            if defects is None or training_defects is None:
                defects, training_defects = cut_out(pictures), cut_out(kind.training)
            look = one.layers
            to_training = distances(look, pictures.images, kind.training.images)
            values.append(_diversity(look, pictures.images, to_training))
            to_training = distances(look, defects, training_defects)
            values.append(_diversity(look, defects, to_training))
            copies = is_copy(to_training, distances(look, training_defects, training_defects))
            known = set(kind.training.digests)
            same = [digest in known for digest in pictures.digests]
            values.append(100 * float(np.mean(np.logical_or(copies, same))))
    if generated is not None and len(kind.normals):
        around = compare(pictures.images, pictures.masks, kind.normals)
        exact = [np.isinf(one.psnr) for one in around]
        inexact = [one.psnr for one in around if np.isfinite(one.psnr)]
        values.append(float(np.mean([one.fill for one in around])))
        values.append(float(np.mean(inexact)) if inexact else float("inf"))
        values.append(100 * float(np.mean(exact)))
    else:
        values += [float("nan")] * 3
    return dict(zip(column_names(backends), values, strict=True))


def mean_of(scores: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, float]:
    """Mean over the defects of each category, then over categories.

    What is NaN is left out, and infinite (a background that is exact) unless all are.
    """
    names = list(next(iter(scores.values())))
    categories = dict.fromkeys(category for category, _ in scores)
    means = {}
    for name in names:
        rows = [
            [one[name] for (owner, _), one in scores.items() if owner == category]
            for category in categories
        ]
        kept = [np.mean(known) for row in rows if (known := [v for v in row if isfinite(v)])]
        exact = any(value == inf for row in rows for value in row)
        means[name] = float(np.mean(kept)) if kept else inf if exact else nan
    return means


def cut_out(pictures: ImageSet) -> Images:
    """Each defect magnified, grey outside its mask."""
    views = []
    for image, mask in zip(pictures.images, pictures.masks, strict=True):
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
    look: Callable[[Images], Sequence[Tensor]], images: Images, to_references: Tensor
) -> float:
    clusters = cluster_members(to_references)
    within = [distances(look, images[one], images[one]) for one in clusters if len(one) > 1]
    return cluster_diversity(within)
