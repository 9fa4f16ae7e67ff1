"""Whether a drawn defect looks like the training defects of its kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from acontrol.data.images import read_image
from acontrol.data.mvtec import LabelledImage
from acontrol.generation.plan import PlannedImage
from acontrol.masks.sampler import DefectType
from acontrol.networks.defect_features import defect_features
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline

BATCH = 8


@dataclass(frozen=True)
class Known:
    """Training defects of one kind, as the vision tower sees them.

    Attributes:
        features: (defect, width), of length 1.
        limit: The largest cosine distance of one of them to its nearest other; None for one
            alone.
    """

    features: Tensor
    limit: float | None


class DefectScorer:
    """Compares drawings with training defects."""

    def __init__(
        self,
        pipeline: AnomalyControlPipeline,
        training: Callable[[DefectType], Sequence[LabelledImage]],
    ):
        """Take the vision tower, and where training defects are found."""
        self.vlm = pipeline.vlm
        self._training = training
        self._known: dict[DefectType, Known | None] = {}

    def distances(
        self, planned: Sequence[PlannedImage], drawn: Sequence[Image.Image]
    ) -> list[tuple[float, float | None] | None]:
        """Cosine distance in [0, 2] of each drawing to the nearest training defect of its kind.

        Returns:
            Distance, and the most that is usual: None where the reference is of another
            product than the drawing, since then the product differs too, or where there is
            but one training defect. None altogether where there is none.
        """
        features = self._features(list(drawn), [one.mask.image() for one in planned])
        found: list[tuple[float, float | None] | None] = []
        for one, own in zip(planned, features, strict=True):
            kind = one.reference.kind
            known = None if kind is None else self._of(kind)
            if kind is None or known is None:
                found.append(None)
                continue
            distance = float(1 - (known.features @ own).max())
            found.append((distance, known.limit if kind[0] == one.name[0] else None))
        return found

    def _of(self, kind: DefectType) -> Known | None:
        if kind not in self._known:
            images = self._training(kind)
            self._known[kind] = self._measure(images) if images else None
        return self._known[kind]

    def _measure(self, images: Sequence[LabelledImage]) -> Known:
        features = torch.cat(
            [
                self._features(
                    [Image.fromarray(read_image(one.image)) for one in some],
                    [Image.fromarray(one.read_mask()) for one in some],
                )
                for some in (images[at : at + BATCH] for at in range(0, len(images), BATCH))
            ]
        )
        if len(images) == 1:
            return Known(features, None)
        alike = features @ features.T
        alike.fill_diagonal_(-1)
        return Known(features, float((1 - alike.max(dim=1).values).max()))

    def _features(self, images: list[Image.Image], masks: list[Image.Image]) -> Tensor:
        return F.normalize(defect_features(self.vlm, images, masks).double(), dim=1).cpu()
