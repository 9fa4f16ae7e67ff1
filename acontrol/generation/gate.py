"""The gate: a generated defect's distance to the training defects, and the limits it missed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from acontrol.data.images import read_image
from acontrol.data.mvtec import LabelledImage
from acontrol.generation.plan import PlannedImage
from acontrol.generation.settings import Gate
from acontrol.masks.sampler import DefectType
from acontrol.networks.defect_features import defect_features

BATCH = 8
ENOUGH = (
    8  # Training defects that tell how far apart defects of a type lie; with fewer no limit.
)


def missed_limits(scores: Mapping[str, Any], gate: Gate) -> dict[str, str]:
    """The limits that an image missed: each option, and its score and limit in words.

    Args:
        scores: Of the image's line in the manifest.
        gate: The job's.
    """
    missed = {}
    fill, distance, limit = scores["mask_fill"], scores["distance"], scores["limit"]
    background = scores["background_psnr"]
    if fill < gate.min_fill:
        missed["--min-fill"] = f"{fill:.1%} of the mask changed, under {gate.min_fill:.0%}"
    if distance is not None and limit is not None and distance > limit:
        missed["--max-distance"] = (
            f"distance {distance:.3f} to the nearest training defect, over {limit:.3f}"
        )
    if background is not None and background < gate.min_background:
        missed["--min-background"] = (
            f"background at {background:.1f} dB, under {gate.min_background:g} dB"
        )
    return missed


@dataclass(frozen=True)
class TypeFeatures:
    """The training defects of one type in the vision tower's features.

    Attributes:
        features: (defect, width), of length 1.
        limit: The largest cosine distance of one of them to its nearest other; None for fewer
            than `ENOUGH`.
    """

    features: Tensor
    limit: float | None


class DefectScorer:
    """Compares generated images with training defects."""

    def __init__(
        self,
        vlm: Blip2ForImageTextRetrieval,
        training: Callable[[DefectType], Sequence[LabelledImage]],
    ):
        """Use the vision tower of ``vlm``; ``training`` lists a type's training images."""
        self.vlm = vlm
        self.training = training
        self._types: dict[DefectType, TypeFeatures | None] = {}

    def distances(
        self, planned: Sequence[PlannedImage], images: Iterable[Image.Image]
    ) -> list[tuple[float, float | None] | None]:
        """Cosine distance in [0, 2] of each image to the nearest training defect of its type.

        Returns:
            Distance and limit of each image; None without training defects. The limit is None
            where the reference is of another product than the image, since then the product
            differs too, or where there are fewer than `ENOUGH` training defects.
        """
        features = self._features(images, (image.mask.image() for image in planned))
        distances: list[tuple[float, float | None] | None] = []
        for image, feature in zip(planned, features, strict=True):
            defect_type = image.reference.defect_type
            known = None if defect_type is None else self._of(defect_type)
            if defect_type is None or known is None:
                distances.append(None)
                continue
            distance = float(1 - (known.features @ feature).max())
            same_product = defect_type[0] == image.name[0]
            distances.append((distance, known.limit if same_product else None))
        return distances

    def _of(self, defect_type: DefectType) -> TypeFeatures | None:
        if defect_type not in self._types:
            images = self.training(defect_type)
            self._types[defect_type] = self._measure(images) if images else None
        return self._types[defect_type]

    def _measure(self, images: Sequence[LabelledImage]) -> TypeFeatures:
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        features = torch.cat(
            [
                self._features(
                    (Image.fromarray(read_image(image.image)) for image in batch),
                    (Image.fromarray(image.read_mask()) for image in batch),
                )
                for batch in batches
            ]
        )
        if len(images) < ENOUGH:
            return TypeFeatures(features, None)
        similarity = features @ features.T
        similarity.fill_diagonal_(-1)
        return TypeFeatures(features, float((1 - similarity.max(dim=1).values).max()))

    def _features(self, images: Iterable[Image.Image], masks: Iterable[Image.Image]) -> Tensor:
        return F.normalize(defect_features(self.vlm, images, masks).double(), dim=1).cpu()
