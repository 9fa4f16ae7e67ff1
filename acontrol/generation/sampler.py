"""Draw a batch of a plan: sample, judge, and draw again what shows no defect.

What comes out of a batch is a pure function of the batch, the model and the settings; neither
other batches nor an interruption change it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from acontrol.data.images import read_image, read_mask
from acontrol.generation.compositing import changed, feather_px, fidelity, paste, refined
from acontrol.generation.crops import Crop, crops
from acontrol.generation.plan import PlannedImage, Reference
from acontrol.generation.scoring import DefectScorer
from acontrol.generation.settings import Gate, OutputSettings, Sampling
from acontrol.masks.shape import Mask
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline, Conditions
from acontrol.seeding import derive_seed

LIMIT = 512  # References kept, each 1.6 MB at full size in half precision.


class ConditionCache:
    """Keeps what was computed for the references and texts met last.

    Each is computed in a batch of its own: in a larger one its neighbours could change the
    last bit, and then a continued job would not draw what an uninterrupted one does.
    """

    def __init__(self, pipeline: AnomalyControlPipeline, limit: int = LIMIT):
        """Take the pipeline that computes."""
        self.pipeline = pipeline
        self.limit = limit
        self.computed = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._empty: Conditions | None = None

    def of(self, batch: Sequence[PlannedImage], sampling: Sampling) -> Conditions:
        """The conditions of a batch."""
        text = [self._text(one.prompt) for one in batch]
        semantic = [self._semantic(one.reference, sampling) for one in batch]
        if self._empty is None:
            self._empty = self.pipeline.conditions(text[0], semantic[0])
        empty = self._empty
        return Conditions(
            torch.cat(text), torch.cat(semantic), empty.empty_text, empty.empty_semantic
        )

    def _text(self, prompt: str) -> Tensor:
        return self._once(prompt, lambda: self.pipeline.encode_text([prompt]))

    def _semantic(self, reference: Reference, sampling: Sampling) -> Tensor:
        asea = self.pipeline.card.asea
        changed = {"steps": sampling.asea_steps, "step_size": sampling.asea_step_size}
        asea = asea.model_copy(update={k: v for k, v in changed.items() if v is not None})

        def compute() -> Tensor:
            image = Image.fromarray(read_image(reference.image))
            mask = Image.fromarray(read_mask(reference.mask, image.size))
            return self.pipeline.encode_reference([image], [mask], [reference.phrase], asea)

        return self._once((reference, asea.steps, asea.step_size), compute)

    def _once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            self._kept[key] = compute()
            self.computed += 1
            if len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scores:
    """How well one drawing shows what its label says.

    Attributes:
        mask_fill: Share of the mask that changed by more than the autoencoder's own error.
        distance: Cosine distance to the nearest training defect of its kind, to the vision
            tower; None where there is none.
        limit: The most that passes; None where any does.
        background_psnr: Of the result outside the mask, in dB; None where it is exact.
        background_ssim: The same; None for images too small for it.
        leak_psnr: What the autoencoder made of the background before the normal image was put
            back, in dB, lowest of the strokes; None where there is no background.
        passed: Whether the gate lets it through.
    """

    mask_fill: float
    distance: float | None
    limit: float | None
    background_psnr: float | None
    background_ssim: float | None
    leak_psnr: float | None
    passed: bool


@dataclass(frozen=True)
class GeneratedImage:
    """One image of a batch.

    Attributes:
        planned: What was asked for.
        image: (H, W, 3), as large as the normal image.
        refined: (H, W), what of the mask really changed; the mask itself if nothing did.
        attempt: Which drawing of it this is, from 0.
        seed: What its noise was drawn with.
        scores: How good it is.
        boxes: What the model saw of the image, stroke by stroke.
    """

    planned: PlannedImage
    image: Pixels
    refined: Mask
    attempt: int
    seed: int
    scores: Scores
    boxes: tuple[tuple[int, int, int, int], ...]


@dataclass
class _Canvas:
    """One image while it is drawn."""

    normal: Pixels
    now: Pixels
    mask: Mask
    crops: list[Crop]
    change: Mask
    leaks: list[float]


class Generator:
    """Draws batches with one pipeline."""

    def __init__(
        self,
        pipeline: AnomalyControlPipeline,
        scorer: DefectScorer,
        gate: Gate | None = None,
        finish: OutputSettings | None = None,
    ):
        """Take what draws and what judges."""
        self.pipeline = pipeline
        self.scorer = scorer
        self.gate = gate or Gate()
        self.finish = finish or OutputSettings()
        self.conditions = ConditionCache(pipeline)

    def batch(self, planned: Sequence[PlannedImage]) -> list[GeneratedImage]:
        """Draw a batch, in which all images have the same sampling settings.

        Raises:
            UserError: If an image or a mask is bad.
            torch.OutOfMemoryError: If the batch is too large.
        """
        best: dict[int, GeneratedImage] = {}
        waiting = list(range(len(planned)))
        tries = 1 if self.gate.gate == "off" else self.gate.tries
        for attempt in range(tries):
            drawn = self._attempt([planned[row] for row in waiting], attempt)
            for row, one in zip(waiting, drawn, strict=True):
                if row not in best or _rank(one, self.gate) > _rank(best[row], self.gate):
                    best[row] = one
            waiting = [row for row in waiting if not best[row].scores.passed]
            if not waiting:
                break
        return [best[row] for row in range(len(planned))]

    def _attempt(self, planned: Sequence[PlannedImage], attempt: int) -> list[GeneratedImage]:
        """Draw every image once and score it."""
        conditions = self.conditions.of(planned, planned[0].sampling)
        seeds = [
            one.seed if attempt == 0 else derive_seed(one.seed, "attempt", attempt)
            for one in planned
        ]
        canvases = [self._canvas(one) for one in planned]
        for crop_index in range(max(len(canvas.crops) for canvas in canvases)):
            rows = [row for row, one in enumerate(canvases) if crop_index < len(one.crops)]
            some = replace(
                conditions,
                text=conditions.text[rows],
                semantic=conditions.semantic[rows],
            )
            self._stroke(
                [canvases[row] for row in rows],
                crop_index,
                some,
                planned[0],
                [
                    derive_seed(seeds[row], "stroke", crop_index) if crop_index else seeds[row]
                    for row in rows
                ],
            )
        return [
            self._scored(*each, attempt)
            for each in zip(
                planned, canvases, seeds, self._distances(planned, canvases), strict=True
            )
        ]

    def _canvas(self, planned: PlannedImage) -> _Canvas:
        normal = read_image(planned.normal)
        mask = np.asarray(planned.mask.image())
        found = crops(mask, planned.sampling.crop, self.pipeline.card.resolution)
        return _Canvas(normal, normal, mask, found, np.zeros_like(mask), [])

    def _stroke(
        self,
        canvases: Sequence[_Canvas],
        number: int,
        conditions: Conditions,
        like: PlannedImage,
        seeds: Sequence[int],
    ) -> None:
        """Draw one stroke into each canvas."""
        views, masks = [], []
        for canvas in canvases:
            left, top, right, bottom = canvas.crops[number].box
            views.append(canvas.now[top:bottom, left:right])
            masks.append(canvas.crops[number].mask[top:bottom, left:right])
        drawn = self.pipeline.sample(
            conditions,
            [Image.fromarray(view) for view in views],
            [Image.fromarray(mask) for mask in masks],
            num_inference_steps=like.sampling.steps,
            guidance_scale=like.sampling.guidance_scale,
            semantic_scale=like.sampling.scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            composite=False,
        ).images
        for canvas, view, mask, picture in zip(canvases, views, masks, drawn, strict=True):
            left, top, right, bottom = canvas.crops[number].box
            pixels = np.asarray(picture)
            canvas.change[top:bottom, left:right] |= changed(view, pixels, mask)
            kept = fidelity(view, pixels, mask)
            if kept is not None and kept.psnr is not None:
                canvas.leaks.append(kept.psnr)
            if self.finish.composite:
                width = feather_px(max(mask.shape), self.pipeline.card.resolution)
                pixels = paste(view, pixels, mask, self.finish.blend, width)
            canvas.now = canvas.now.copy()
            canvas.now[top:bottom, left:right] = pixels

    def _distances(
        self, planned: Sequence[PlannedImage], canvases: Sequence[_Canvas]
    ) -> list[tuple[float, float | None] | None]:
        return self.scorer.distances(
            planned, [Image.fromarray(canvas.now) for canvas in canvases]
        )

    def _scored(
        self,
        planned: PlannedImage,
        canvas: _Canvas,
        seed: int,
        found: tuple[float, float | None] | None,
        attempt: int,
    ) -> GeneratedImage:
        distance, limit = found or (None, None)
        if self.gate.max_distance is not None:
            limit = self.gate.max_distance
        fill = float(canvas.change.sum() / canvas.mask.sum())
        near = distance is None or limit is None or distance <= limit
        background = fidelity(canvas.normal, canvas.now, canvas.mask)
        scores = Scores(
            mask_fill=fill,
            distance=distance,
            limit=limit,
            background_psnr=background.psnr if background else None,
            background_ssim=background.ssim if background else None,
            leak_psnr=min(canvas.leaks) if canvas.leaks else None,
            passed=fill >= self.gate.min_fill and near,
        )
        tight = refined(canvas.change, canvas.mask)
        return GeneratedImage(
            planned,
            canvas.now,
            tight if tight.any() else canvas.mask,
            attempt,
            seed,
            scores,
            tuple(one.box for one in canvas.crops),
        )


def _rank(drawing: GeneratedImage, gate: Gate) -> tuple[bool, bool, float]:
    """The better of two attempts: passed, then filled, then nearest."""
    scores = drawing.scores
    nearness = -scores.distance if scores.distance is not None else scores.mask_fill
    return scores.passed, scores.mask_fill >= gate.min_fill, nearness
