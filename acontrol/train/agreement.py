"""How much guided drawings look like their references, in the vision tower's eyes.

A denoising loss is of conditioned samples, so it cannot judge what makes guidance work, the
condition dropout. This can: it samples as a user does, with classifier-free guidance.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from acontrol.anomaly_map import region_on_grid
from acontrol.base import BaseModels
from acontrol.config import RunConfig, derive_seed
from acontrol.csm import see
from acontrol.data.framing import fit, region
from acontrol.data.stream import TrainingStream
from acontrol.sga import SemanticAdapter
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
            defect_features(base, drawn, masks), defect_features(base, images, masks)
        ).tolist()
    return sum(cosines) / len(cosines)


@torch.no_grad()
def defect_features(
    base: BaseModels, images: list[Image.Image], masks: list[Image.Image]
) -> Float[Tensor, "image width"]:
    """Mean of the vision tower's patch features inside each mask, of the magnified region."""
    vision = base.vlm.config.vision_config
    views = [
        fit(*region(image.convert("RGB"), mask), vision.image_size)
        for image, mask in zip(images, masks, strict=True)
    ]
    patches = see(base.vlm, torch.stack([pixels for pixels, _ in views])).float()[:, 1:]
    inside = region_on_grid(
        torch.stack([mask for _, mask in views]).to(patches.device),
        vision.image_size // vision.patch_size,
    ).flatten(1)
    weight = (inside / inside.sum(dim=1, keepdim=True))[..., None].to(patches.dtype)
    return (patches * weight).sum(dim=1)
