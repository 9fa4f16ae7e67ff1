"""Draw a batch of a plan: sample, score, and draw again whatever shows no defect.

A batch's result is a pure function of the batch, the model and the settings; neither other
batches nor an interruption change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.crops import Box, Crop
from acontrol.data.images import read_image
from acontrol.generation.colour import ColourLimits
from acontrol.generation.gate import DefectScorer
from acontrol.generation.plan import PlannedImage
from acontrol.generation.scoring import changed, psnr, refined, ssim
from acontrol.generation.settings import Gate, OutputSettings
from acontrol.masks.shape import Mask
from acontrol.pipelines.compositing import Pixels, limit_saturation, paste, paste_part
from acontrol.rivals.task import Drawing, Method, Task
from acontrol.seeding import derive_seed


@dataclass(frozen=True)
class Scores:
    """How well one image shows what its label says.

    Attributes:
        mask_fill: Share of the mask that changed by more than the autoencoder's own error; by a
            method that pastes, what was pasted.
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
    starts: dict[int, Pixels] = field(default_factory=dict)  # By the id of a crop's defect.
    weight: npt.NDArray[np.float64] | None = None  # Of the parts of long defects so far.
    exact: bool = True  # Whether ``change`` is known, not measured.


class Generator:
    """Draws batches with one method."""

    def __init__(
        self,
        method: Method,
        scorer: DefectScorer,
        gate: Gate | None = None,
        output: OutputSettings | None = None,
    ):
        """Combine a method with a scorer."""
        self.method = method
        self.scorer = scorer
        self.gate = gate or Gate()
        self.output = output or OutputSettings()
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
        canvases = [self._canvas(image, attempt) for image in planned]
        for number in range(max(len(canvas.crops) for canvas in canvases)):
            self._draw_crops(
                [canvas for canvas in canvases if number < len(canvas.crops)], number
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
        parts = self.method.crops(mask, planned.sampling.crop)
        return _Canvas(planned, seed, normal, normal.copy(), mask, parts, np.zeros_like(mask))

    def _draw_crops(self, canvases: Sequence[_Canvas], number: int) -> None:
        """Draw the crop of that number into each canvas."""
        tasks = [_task(canvas, number) for canvas in canvases]
        drawings = self.method.draw(tasks)
        for canvas, task, drawing in zip(canvases, tasks, drawings, strict=True):
            left, top, right, bottom = canvas.crops[number].box
            pixels = drawing.pixels
            if self.output.match_colour == "auto":
                limit = self.colours.of(canvas.planned.reference, canvas.normal)
                pixels = limit_saturation(pixels, limit)
            change = _change(task, drawing, pixels)
            canvas.change[top:bottom, left:right] |= change
            canvas.exact &= drawing.pasted is not None
            leak = psnr(task.image, pixels, task.mask)
            if leak is not None:
                canvas.leaks.append(leak)
            if self.output.composite:
                pixels = self._composited(canvas, canvas.crops[number], task, drawing, pixels)
            canvas.pixels[top:bottom, left:right] = pixels

    def _composited(
        self, canvas: _Canvas, crop: Crop, task: Task, drawing: Drawing, pixels: Pixels
    ) -> Pixels:
        """The drawing's defect on the normal image."""
        mask = task.mask if drawing.pasted is None else drawing.pasted
        if not mask.any():
            return task.image
        width = self.method.fade_px(max(mask.shape))
        if crop.part is None or drawing.pasted is not None or self.output.blend != "feather":
            return paste(task.image, pixels, mask, self.output.blend, width)
        if canvas.weight is None:
            canvas.weight = np.zeros(canvas.mask.shape)
        left, top, right, bottom = crop.box
        here = np.s_[top:bottom, left:right]
        normal, before = canvas.normal[here], canvas.weight[here]
        result = paste_part(task.image, normal, pixels, crop, before, width)
        before += crop.weight
        return result

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
        tight = canvas.change if canvas.exact else refined(canvas.change, canvas.mask)
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


def _task(canvas: _Canvas, number: int) -> Task:
    """The crop of that number."""
    planned, crop = canvas.planned, canvas.crops[number]
    left, top, right, bottom = crop.box
    task = Task(
        image=canvas.pixels[top:bottom, left:right],
        mask=crop.mask,
        category=planned.name[0],
        defect=planned.name[1],
        reference_image=planned.reference.image,
        reference_mask=planned.reference.mask,
        phrase=planned.reference.phrase,
        prompt=planned.prompt,
        seed=derive_seed(canvas.seed, "stroke", number) if number else canvas.seed,
        sampling=planned.sampling,
    )
    if planned.sampling.start != "reference" or crop.part is None:
        return task
    # Its defect into the whole of the mask, not once more into each part.
    from acontrol.rivals.copy_paste import pasted

    if id(crop.defect) not in canvas.starts:
        start = pasted(canvas.normal, crop.defect, *task.reference()).pixels
        canvas.starts[id(crop.defect)] = start
    seen = canvas.starts[id(crop.defect)][top:bottom, left:right]
    return replace(task, under=np.where(task.mask[..., None], seen, task.image))


def _change(task: Task, drawing: Drawing, pixels: Pixels) -> Mask:
    """What a drawing changed: what it says itself, or what a comparison shows."""
    if drawing.pasted is not None:
        return drawing.pasted
    return changed(task.image, pixels, task.mask)
