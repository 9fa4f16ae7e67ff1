"""What is around a drawn defect, and whether there is one: background and mask-fill.

A generated image is a normal image with a defect, so it is compared with the normal image that
its surroundings are nearest to. Works on any folder of pairs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from torch import Tensor

_LEVELS = 8  # A pixel has changed if a channel differs by more grey levels.
_RIM = 0.04  # Of the side, around the mask: generators feather their edges there.
_SMALL = 32  # Side at which candidates are looked for.


@dataclass(frozen=True)
class Surroundings:
    """Of one image.

    Attributes:
        psnr: Of the surroundings against the nearest normal image, in dB; infinite if equal.
        fill: Share of the mask that differs from it, in [0, 1].
    """

    psnr: float
    fill: float


def compare(
    images: UInt8[Tensor, "n 3 side side"],
    masks: Bool[Tensor, "n side side"],
    normals: UInt8[Tensor, "m 3 side side"],
) -> list[Surroundings]:
    """Compare each image with its nearest normal image."""
    thumbnails = _shrunk(normals.float())
    rim = round(_RIM * images.shape[-1])
    found = []
    for image, mask in zip(images, masks, strict=True):
        wide = F.max_pool2d(mask[None].float(), 2 * rim + 1, 1, rim)[0] > 0
        seen = _shrunk(image[None].float())
        open_cells = _shrunk((~wide)[None, None].float()) == 1
        gap = ((thumbnails - seen).square() * open_cells).flatten(1).sum(1)
        normal = normals[int(gap.argmin())].int()
        change = (image.int() - normal).abs()
        outside = change[:, ~wide].double().square()
        mse = float(outside.mean()) if outside.numel() else float("nan")
        psnr = float("inf") if mse == 0 else float(10 * torch.tensor(255**2 / mse).log10())
        fill = (change.amax(dim=0)[mask] > _LEVELS).double().mean()
        found.append(Surroundings(psnr, float(fill)))
    return found


def _shrunk(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, _SMALL)
