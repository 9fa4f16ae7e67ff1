"""How training goes, by what it draws: the sample grid, and agreement with held-out defects."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from acontrol.config import RunConfig
from acontrol.data.images import pictures
from acontrol.data.stream import Batch, TrainingStream, collate
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.defect_features import defect_features
from acontrol.networks.load import BaseModels
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.reporting import contact_sheet, outlined
from acontrol.seeding import derive_seed


def sample_grid(
    base: BaseModels,
    adapter: SemanticAdapter,
    weights: Mapping[str, Tensor],
    stream: TrainingStream,
    config: RunConfig,
) -> Image.Image:
    """Draw the first few training references again: reference, its mask, and the sample.

    Rows and seeds are the same at every step, so grids compare.

    Args:
        base: The frozen networks.
        adapter: Gives shape and card; its own weights are not touched.
        weights: Whole weights to draw with.
        stream: Where references come from.
        config: The run.
    """
    pipeline = sampler(base, adapter, weights)
    count = min(config.samples.count, len(stream.reader))
    batch = collate([stream.pixels(position) for position in range(count)], Batch)
    references = pictures(batch.reference_image)
    masks = [
        Image.fromarray((one[0].numpy() * 255).astype(np.uint8)) for one in batch.reference_mask
    ]
    drawn = pipeline(
        batch.caption,
        references,
        masks,
        batch.reference_phrase,
        num_inference_steps=config.samples.steps,
        guidance_scale=config.samples.guidance_scale,
        generator=[
            torch.Generator().manual_seed(derive_seed(config.seed, "grid", row))
            for row in range(count)
        ],
    ).images
    rows = [
        [reference, outlined(reference, mask), picture]
        for reference, mask, picture in zip(references, masks, drawn, strict=True)
    ]
    return contact_sheet(rows, ["reference", "mask", "sample"], batch.caption)


def sampler(
    base: BaseModels, adapter: SemanticAdapter, weights: Mapping[str, Tensor]
) -> AnomalyControlPipeline:
    """A silent pipeline over the training's own base, with other weights in the adapter."""
    copy = SemanticAdapter(**{name: adapter.config[name] for name in _settings(adapter)})
    copy.load_state_dict(dict(weights))
    pipeline = AnomalyControlPipeline.from_base(base, copy.to(base.unet.device).eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _settings(adapter: SemanticAdapter) -> list[str]:
    return [name for name in adapter.config if not name.startswith("_")]


# A denoising loss is of conditioned samples, so it cannot judge what makes guidance work, the
# condition dropout. The agreement can: it samples as a user does, with guidance.
BATCH = 8  # Drawings at a time.


@torch.no_grad()
def guided_agreement(
    base: BaseModels,
    adapter: SemanticAdapter,
    weights: Mapping[str, Tensor],
    held: TrainingStream,
    config: RunConfig,
) -> float:
    """Draw held-out defects anew in their place; mean cosine with the real ones, in [-1, 1].

    Each of the first ``validation.drawings`` held-out images is its own reference and its own
    normal image: all but the defect's mask is kept, and the defect is drawn from noise there.
    Drawing and image are then cut to the region around the mask, and the vision tower's patch
    features inside the mask are averaged and compared. Choice and noise depend on neither seed
    nor settings, so runs compare. What surrounds a defect is the same on both sides and part
    of what a patch sees: differences between runs mean something, the height does not.

    Args:
        base: The frozen networks.
        adapter: Gives shape and card; its own weights are not touched.
        weights: Whole weights to draw with.
        held: The held-out samples.
        config: The run, of which samples.steps and samples.guidance_scale are used.
    """
    pipeline = sampler(base, adapter, weights)
    samples = [
        held.reader.read(held.pair(place)[0])
        for place in range(min(config.validation.drawings, len(held)))
    ]
    cosines: list[float] = []
    for first in range(0, len(samples), BATCH):
        some = samples[first : first + BATCH]
        images, masks = [one.image for one in some], [one.mask for one in some]
        drawn = pipeline(
            [one.caption for one in some],
            images,
            masks,
            [one.phrase for one in some],
            images,
            masks,
            num_inference_steps=config.samples.steps,
            guidance_scale=config.samples.guidance_scale,
            generator=[
                torch.Generator().manual_seed(derive_seed(0, "agreement", first + row))
                for row in range(len(some))
            ],
        ).images
        cosines += F.cosine_similarity(
            defect_features(base.vlm, drawn, masks), defect_features(base.vlm, images, masks)
        ).tolist()
    return sum(cosines) / len(cosines)
