"""Draw a batch of a plan: sample, score, and draw again whatever shows no defect.

A batch's result is a pure function of the batch, the model and the settings; neither other
batches nor an interruption change it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.data.crops import Box, Crop, crops
from acontrol.data.images import read_image, read_mask
from acontrol.generation.colour import ColourLimits
from acontrol.generation.gate import DefectScorer
from acontrol.generation.plan import PlannedImage, Reference
from acontrol.generation.scoring import changed, psnr, refined, ssim
from acontrol.generation.settings import Gate, OutputSettings, Sampling
from acontrol.masks.shape import Mask
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline, Conditions
from acontrol.pipelines.compositing import Pixels, feather_px, limit_saturation, paste
from acontrol.seeding import derive_seed

_CACHED = 512  # Conditions, each 1.6 MB at full size in half precision.


class ConditionCache:
    """Keeps the conditions of the most recent references and texts.

    Each is computed in a batch of its own: in a larger one its neighbours could change the
    last bit, and a continued job would differ from an uninterrupted one.
    """

    def __init__(self, pipeline: AnomalyControlPipeline):
        """Start empty, with the pipeline that computes the conditions."""
        self.pipeline = pipeline
        self.computed = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._empty: Conditions | None = None

    def of(self, batch: Sequence[PlannedImage], sampling: Sampling) -> Conditions:
        """The conditions of a batch."""
        text = [self._text(image.prompt) for image in batch]
        semantic = [self._semantic(image.reference, sampling) for image in batch]
        if self._empty is None:
            self._empty = self.pipeline.conditions(text[0], semantic[0])
        return replace(self._empty, text=torch.cat(text), semantic=torch.cat(semantic))

    def _text(self, prompt: str) -> Tensor:
        return self._cached(prompt, lambda: self.pipeline.encode_text([prompt]))

    def _semantic(self, reference: Reference, sampling: Sampling) -> Tensor:
        asea = self.pipeline.card.asea
        if sampling.asea_steps is not None:
            asea = asea.model_copy(update={"steps": sampling.asea_steps})
        if sampling.asea_step_size is not None:
            asea = asea.model_copy(update={"step_size": sampling.asea_step_size})

        def compute() -> Tensor:
            image = Image.fromarray(read_image(reference.image))
            mask = Image.fromarray(read_mask(reference.mask, image.size))
            return self.pipeline.encode_reference([image], [mask], [reference.phrase], asea)

        return self._cached((reference, asea.steps, asea.step_size), compute)

    def _cached(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            self._kept[key] = compute()
            self.computed += 1
            if len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


@dataclass(frozen=True)
class Scores:
    """How well one image shows what its label says.

    Attributes:
        mask_fill: Share of the mask that changed by more than the autoencoder's own error.
        distance: Cosine distance to the nearest training defect of its type, in the vision
            tower's features; None without training defects.
        limit: The largest distance that passes; None for any.
        background_psnr: Outside the mask, in dB; None if exact.
        background_ssim: Outside the mask; None for images smaller than its window.
        leak_psnr: Of the background as decoded, before the normal image was put back, in dB,
            lowest of the crops; None without background.
        passed: Whether it passes the gate.
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
        planned: Its plan.
        image: (H, W, 3), as large as the normal image.
        refined: (H, W), the part of the mask that really changed; the whole mask if none did.
        changed_px: Number of pixels that really changed.
        attempt: Number of the attempt, from 0.
        seed: Of its noise.
        scores: How good it is.
        boxes: The crops that the model saw, in order.
    """

    planned: PlannedImage
    image: Pixels
    refined: Mask
    changed_px: int
    attempt: int
    seed: int
    scores: Scores
    boxes: tuple[Box, ...]


@dataclass
class _Canvas:
    """One image while it is drawn."""

    planned: PlannedImage
    seed: int
    normal: Pixels
    pixels: Pixels
    mask: Mask
    crops: list[Crop]
    change: Mask
    leaks: list[float] = field(default_factory=list)


class Generator:
    """Draws batches with one pipeline."""

    def __init__(
        self,
        pipeline: AnomalyControlPipeline,
        scorer: DefectScorer,
        gate: Gate | None = None,
        output: OutputSettings | None = None,
    ):
        """Combine a pipeline with a scorer."""
        self.pipeline = pipeline
        self.scorer = scorer
        self.gate = gate or Gate()
        self.output = output or OutputSettings()
        self.conditions = ConditionCache(pipeline)
        self.colours = ColourLimits(scorer.training)

    def generate_batch(self, planned: Sequence[PlannedImage]) -> list[GeneratedImage]:
        """Draw a batch of images that share their sampling settings.

        Raises:
            UserError: If an image or a mask is bad.
            torch.OutOfMemoryError: If the batch is too large.
        """
        best: dict[int, GeneratedImage] = {}
        waiting = list(range(len(planned)))
        for attempt in range(1 if self.gate.gate == "off" else self.gate.tries):
            images = self._attempt([planned[row] for row in waiting], attempt)
            for row, image in zip(waiting, images, strict=True):
                if row not in best or self._rank(image) > self._rank(best[row]):
                    best[row] = image
            waiting = [row for row in waiting if not best[row].scores.passed]
            if not waiting:
                break
        return [best[row] for row in range(len(planned))]

    def _rank(self, image: GeneratedImage) -> tuple[bool, bool, float]:
        """The better of two attempts: passed, then filled, then nearest."""
        scores = image.scores
        nearness = -scores.distance if scores.distance is not None else scores.mask_fill
        return scores.passed, scores.mask_fill >= self.gate.min_fill, nearness

    def _attempt(self, planned: Sequence[PlannedImage], attempt: int) -> list[GeneratedImage]:
        """Draw every image once and score it."""
        conditions = self.conditions.of(planned, planned[0].sampling)
        canvases = [self._canvas(image, attempt) for image in planned]
        for number in range(max(len(canvas.crops) for canvas in canvases)):
            rows = [row for row, canvas in enumerate(canvases) if number < len(canvas.crops)]
            self._draw_crops(
                [canvases[row] for row in rows],
                number,
                replace(
                    conditions, text=conditions.text[rows], semantic=conditions.semantic[rows]
                ),
            )
        distances = self.scorer.distances(
            planned, (Image.fromarray(canvas.pixels) for canvas in canvases)
        )
        return [
            self._result(canvas, attempt, *(distance or (None, None)))
            for canvas, distance in zip(canvases, distances, strict=True)
        ]

    def _canvas(self, planned: PlannedImage, attempt: int) -> _Canvas:
        seed = derive_seed(planned.seed, "attempt", attempt) if attempt else planned.seed
        normal = read_image(planned.normal)
        mask = np.asarray(planned.mask.image())
        card, crop = self.pipeline.card, planned.sampling.crop
        parts = crops(mask, card.target_crop or 0 if crop is None else crop, card.resolution)
        return _Canvas(planned, seed, normal, normal, mask, parts, np.zeros_like(mask))

    def _draw_crops(
        self, canvases: Sequence[_Canvas], number: int, conditions: Conditions
    ) -> None:
        """Draw the crop of that number into each canvas."""
        views, masks = [], []
        for canvas in canvases:
            left, top, right, bottom = canvas.crops[number].box
            views.append(canvas.pixels[top:bottom, left:right])
            masks.append(canvas.crops[number].mask[top:bottom, left:right])
        seeds = [
            derive_seed(canvas.seed, "stroke", number) if number else canvas.seed
            for canvas in canvases
        ]
        sampling = canvases[0].planned.sampling
        drawn = self.pipeline.sample(
            conditions,
            [Image.fromarray(view) for view in views],
            [Image.fromarray(mask) for mask in masks],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            semantic_scale=sampling.scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            composite=False,
        ).images
        for canvas, view, mask, image in zip(canvases, views, masks, drawn, strict=True):
            left, top, right, bottom = canvas.crops[number].box
            pixels = np.asarray(image)
            if self.output.match_colour == "auto":
                limit = self.colours.of(canvas.planned.reference, canvas.normal)
                pixels = limit_saturation(pixels, limit)
            canvas.change[top:bottom, left:right] |= changed(view, pixels, mask)
            leak = psnr(view, pixels, mask)
            if leak is not None:
                canvas.leaks.append(leak)
            if self.output.composite:
                width = feather_px(max(mask.shape), self.pipeline.card.resolution)
                pixels = paste(view, pixels, mask, self.output.blend, width)
            canvas.pixels = canvas.pixels.copy()
            canvas.pixels[top:bottom, left:right] = pixels

    def _result(
        self, canvas: _Canvas, attempt: int, distance: float | None, limit: float | None
    ) -> GeneratedImage:
        if self.gate.max_distance is not None:
            limit = self.gate.max_distance
        fill = float(canvas.change.sum() / canvas.mask.sum())
        near = distance is None or limit is None or distance <= limit
        background = psnr(canvas.normal, canvas.pixels, canvas.mask)
        scores = Scores(
            mask_fill=fill,
            distance=distance,
            limit=limit,
            background_psnr=background,
            background_ssim=ssim(canvas.normal, canvas.pixels, canvas.mask),
            leak_psnr=min(canvas.leaks) if canvas.leaks else None,
            passed=fill >= self.gate.min_fill
            and near
            and (background is None or background >= self.gate.min_background),
        )
        tight = refined(canvas.change, canvas.mask)
        return GeneratedImage(
            canvas.planned,
            canvas.pixels,
            tight if tight.any() else canvas.mask,
            int(tight.sum()),
            attempt,
            canvas.seed,
            scores,
            tuple(crop.box for crop in canvas.crops),
        )
