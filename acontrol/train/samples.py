"""The grid of sample images that shows how training goes."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.config import RunConfig
from acontrol.data.images import pictures
from acontrol.data.stream import Batch, TrainingStream, collate
from acontrol.method.sga import SemanticAdapter
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
