"""Samples drawn in training: the sample grid, and agreement with held-out defects."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from acontrol.config import RunConfig
from acontrol.data.crops import target_view
from acontrol.data.images import region
from acontrol.data.stream import TrainingStream
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.defect_features import defect_features
from acontrol.networks.load import BaseModels
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.reporting import contact_sheet, tinted
from acontrol.seeding import derive_seed

TITLES = ("reference", "its mask", "sample, from noise alone")
BATCH = 8  # Images sampled at once.


def sample_grid(
    base: BaseModels,
    adapter: SemanticAdapter,
    weights: Mapping[str, Tensor],
    stream: TrainingStream,
    config: RunConfig,
) -> Image.Image:
    """A grid of reference, mask and sample for the first few training samples.

    Rows and seeds are the same at every step, so that grids can be compared. A sample is drawn
    whole, on no normal image: it is coloured noise until the adapter has learnt a little.

    Args:
        base: The frozen networks.
        adapter: For its shape and card; its own weights are not used.
        weights: Whole weights to sample with.
        stream: Where references come from.
        config: The run.
    """
    pipeline = sampler(base, adapter, weights)
    count = min(config.samples.count, len(stream.reader))
    # As they were stored: a batch's masks are shares at the vision tower's size, and its
    # references are cut out already.
    pairs = [
        [stream.reader.read(number) for number in stream.pair(position)]
        for position in range(count)
    ]
    captions = [target.caption for target, _ in pairs]
    references = [reference.image for _, reference in pairs]
    masks = [reference.mask for _, reference in pairs]
    drawn: list[Image.Image] = []
    for first in range(0, count, BATCH):
        own = slice(first, first + BATCH)
        drawn += pipeline(
            captions[own],
            references[own],
            masks[own],
            [reference.phrase for _, reference in pairs[own]],
            num_inference_steps=config.samples.steps,
            guidance_scale=config.samples.guidance_scale,
            generator=[
                torch.Generator().manual_seed(derive_seed(config.seed, "grid", row))
                for row in range(count)[own]
            ],
        ).images
    views = list(zip(references, masks, strict=True))
    if config.data.reference_view == "region":
        views = [region(*view) for view in views]
    rows = [
        [reference, tinted(reference, mask), sample]
        for (reference, mask), sample in zip(views, drawn, strict=True)
    ]
    return contact_sheet(rows, TITLES, captions)


def sampler(
    base: BaseModels, adapter: SemanticAdapter, weights: Mapping[str, Tensor]
) -> AnomalyControlPipeline:
    """A pipeline over the training's own base, with these weights in the adapter."""
    copy = SemanticAdapter(**{name: adapter.config[name] for name in _settings(adapter)})
    copy.load_state_dict(dict(weights))
    pipeline = AnomalyControlPipeline.from_base(base, copy.to(base.unet.device).eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _settings(adapter: SemanticAdapter) -> list[str]:
    return [name for name in adapter.config if not name.startswith("_")]


# The denoising loss, of conditioned samples, does not measure condition dropout, by which
# guidance works. Agreement does: it samples with guidance, as users do.


@torch.no_grad()
def guided_agreement(
    base: BaseModels,
    adapter: SemanticAdapter,
    weights: Mapping[str, Tensor],
    held: TrainingStream,
    config: RunConfig,
) -> float:
    """Mean cosine in [-1, 1] between held-out defects and the same ones generated in place.

    Each of the first ``validation.drawings`` held-out images is its own reference and normal
    image: only the defect's mask is generated, from noise. Both images are cropped around the
    mask, and the vision tower's patch features inside it are averaged and compared. Choice and
    noise depend on neither seed nor settings, so that runs can be compared. Patches also see a
    defect's surroundings, the same on both sides: only differences between runs are meaningful,
    not the value itself.

    Args:
        base: The frozen networks.
        adapter: For its shape and card; its own weights are not used.
        weights: Whole weights to sample with.
        held: The held-out samples.
        config: The run, with samples.steps and samples.guidance_scale.
    """
    pipeline = sampler(base, adapter, weights)
    samples = [
        held.reader.read(held.pair(position)[0])
        for position in range(min(config.validation.drawings, len(held)))
    ]
    crop, most = config.data.target_crop, config.data.target_px
    size = config.data.resolution
    cosines: list[float] = []
    for first in range(0, len(samples), BATCH):
        batch = samples[first : first + BATCH]
        views = [target_view(sample.image, sample.mask, crop, size, most) for sample in batch]
        images, masks = [image for image, _ in views], [mask for _, mask in views]
        drawn = pipeline(
            [sample.caption for sample in batch],
            [sample.image for sample in batch],
            [sample.mask for sample in batch],
            [sample.phrase for sample in batch],
            images,
            masks,
            num_inference_steps=config.samples.steps,
            guidance_scale=config.samples.guidance_scale,
            generator=[
                torch.Generator().manual_seed(derive_seed(0, "agreement", first + row))
                for row in range(len(batch))
            ],
        ).images
        cosines += F.cosine_similarity(
            defect_features(base.vlm, drawn, masks), defect_features(base.vlm, images, masks)
        ).tolist()
    return sum(cosines) / len(cosines)
