"""Features of defects from the vision tower, one vector per image."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from acontrol.data.images import reference_view
from acontrol.method.anomaly_map import region_on_grid
from acontrol.method.csm import embed_patches


@torch.no_grad()
def defect_features(
    vlm: Blip2ForImageTextRetrieval,
    images: Iterable[Image.Image],
    masks: Iterable[Image.Image],
) -> Float[Tensor, "image width"]:
    """Mean of the vision tower's patch features inside each mask, on the magnified region.

    Args:
        vlm: The base's.
        images: RGB; read one after the other, so that one photograph is held at a time.
        masks: 1-bit, of the same sizes.
    """
    vision = vlm.config.vision_config
    views = [
        reference_view(image, mask, "region", vision.image_size)
        for image, mask in zip(images, masks, strict=True)
    ]
    patches = embed_patches(vlm, torch.stack([pixels for pixels, _ in views])).float()[:, 1:]
    inside = region_on_grid(
        torch.stack([mask for _, mask in views]).to(patches.device),
        vision.image_size // vision.patch_size,
    )
    weight = (inside / inside.sum(dim=1, keepdim=True))[..., None].to(patches.dtype)
    return (patches * weight).sum(dim=1)
