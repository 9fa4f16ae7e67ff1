"""Our own method of drawing: the pipeline with an adapter (`acontrol.rivals.task.Method`)."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.config.training import Extent
from acontrol.data.crops import Crop, crops
from acontrol.masks.shape import Mask
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline, Conditions
from acontrol.pipelines.blending import encode_start
from acontrol.pipelines.compositing import Pixels, feather_px
from acontrol.pipelines.denoising import Watch
from acontrol.progress import waiting
from acontrol.rivals.task import Drawing, Task

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

    def of(self, tasks: Sequence[Task]) -> Conditions:
        """The conditions of a batch."""
        text = [self._text(task.prompt) for task in tasks]
        semantic = [self._semantic(task) for task in tasks]
        if self._empty is None:
            self._empty = self.pipeline.conditions(text[0], semantic[0])
        return replace(self._empty, text=torch.cat(text), semantic=torch.cat(semantic))

    def _text(self, prompt: str) -> Tensor:
        return self._cached(prompt, lambda: self.pipeline.encode_text([prompt]))

    def _semantic(self, task: Task) -> Tensor:
        asea, sampling = self.pipeline.card.asea, task.sampling
        if sampling.asea_steps is not None:
            asea = asea.model_copy(update={"steps": sampling.asea_steps})
        if sampling.asea_step_size is not None:
            asea = asea.model_copy(update={"step_size": sampling.asea_step_size})

        def compute() -> Tensor:
            image, mask = (Image.fromarray(pixels) for pixels in task.reference())
            return self.pipeline.encode_reference([image], [mask], [task.phrase], asea)

        files = (task.reference_image, task.reference_mask, task.phrase)
        return self._cached((*files, asea.steps, asea.step_size), compute)

    def _cached(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            self._kept[key] = compute()
            self.computed += 1
            if len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class AdapterMethod:
    """Draws with a pipeline, in the view that its adapter was trained at."""

    def __init__(self, pipeline: AnomalyControlPipeline, name: str = "acontrol"):
        """Use a loaded pipeline; ``name`` says what its adapter is."""
        self.pipeline, self.name = pipeline, name
        self.conditions = ConditionCache(pipeline)
        self.watch: Watch | None = None  # Sees each step of what is drawn.

    def compile(self, extent: Extent, batch_size: int) -> None:
        """Compile the U-Net for batches of that size, or print why it stays as it is."""
        from acontrol.networks.compilation import compile_for_drawing

        pipe = self.pipeline
        with waiting(f"Compiling the U-Net ({extent})"):
            reason = compile_for_drawing(pipe.unet, pipe.warm_up, extent, batch_size)
        if reason is not None:
            print(f"The U-Net runs uncompiled: {reason}", flush=True)

    @property
    def state(self) -> Mapping[str, Any]:
        """Nothing: the digest of adapter and base names it."""
        return {}

    def crops(self, mask: Mask, crop: float | None) -> list[Crop]:
        """Squares around the components, or the whole image."""
        card = self.pipeline.card
        side = card.target_crop or 0 if crop is None else crop
        return crops(mask, side, card.resolution, card.target_px)

    def fade_px(self, side: int) -> int:
        """Two of the model's pixels."""
        return feather_px(side, self.pipeline.card.resolution)

    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Sample each task's latents from its own seed, and decode them."""
        sampling = tasks[0].sampling
        normals = [Image.fromarray(task.image) for task in tasks]
        start = _start(tasks)
        drawn = self.pipeline.sample(
            self.conditions.of(tasks),
            normals,
            [Image.fromarray(task.mask) for task in tasks],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            semantic_scale=sampling.scale,
            generator=[torch.Generator().manual_seed(task.seed) for task in tasks],
            composite=False,
            start_image=start,
            strength=sampling.strength,
            solver=sampling.solver,
            watch=self.watch,
        ).images
        if not sampling.detail:
            return [Drawing(np.asarray(image)) for image in drawn]
        under = start or normals
        seen = self._through_autoencoder(under)
        return [
            Drawing(_moved(*(np.asarray(image) for image in three)))
            for three in zip(under, drawn, seen, strict=True)
        ]

    @torch.no_grad()
    def _through_autoencoder(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """What the base's autoencoder shows of images, at their own sizes."""
        pipe = self.pipeline
        latents = encode_start(pipe.vae, images, pipe.card.resolution, pipe._execution_device)
        return [
            seen.resize(image.size, Image.Resampling.BICUBIC)
            for seen, image in zip(pipe.decode(latents), images, strict=True)
        ]


def _moved(image: Pixels, drawn: Pixels, seen: Pixels) -> Pixels:
    """An image, changed as a drawing differs from what the autoencoder shows of the image."""
    levels = image.astype(np.int16) + drawn - seen
    return levels.clip(0, 255).astype(np.uint8)


def _start(tasks: Sequence[Task]) -> list[Image.Image] | None:
    """What lies under the noise."""
    start = tasks[0].sampling.start
    if start == "noise":
        return None
    if start == "clean":
        return [Image.fromarray(task.image) for task in tasks]
    from acontrol.rivals.copy_paste import pasted

    return [
        Image.fromarray(
            pasted(task.image, task.mask, *task.reference()).pixels
            if task.under is None
            else task.under
        )
        for task in tasks
    ]
