"""How much guided drawings look like their references, in the vision tower's eyes.

A denoising loss is of conditioned samples, so it cannot judge what makes guidance work, the
condition dropout. This can: it samples as a user does, with classifier-free guidance.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from acontrol.config import RunConfig
from acontrol.data.stream import TrainingStream
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.defect_features import defect_features
from acontrol.networks.load import BaseModels
from acontrol.seeding import derive_seed
from acontrol.train.samples import sampler

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
