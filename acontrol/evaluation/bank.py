"""A memory bank of good images' features: a detector that needs no defects.

Roth et al.: "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022. Two
middle stages of a frozen network, averaged over 3 x 3 neighbours; the score of a patch is its
mean distance to the nearest patches of good images. A random subsample stands for the
published greedy coreset, the window mean of all detectors here for its image score.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from acontrol.evaluation import lite0
from acontrol.seeding import derive_seed

NEIGHBOURS = 3
_STAGES = (1, 2)  # Strides 8 and 16.
_SMOOTHED = 1 / 2  # Deviation of the Gaussian over the map, in patches.
_CHUNK = 4096  # Patches that are compared at once.
_HELD_OUT = 1000  # Patches of good images that give the unit of distance.


class MemoryBank(nn.Module):
    """Logits of normal and defect per pixel: 0, and the logarithm of the relative distance.

    The softmax of the second is d / (d + u): the distance d to the bank, in units of the mean
    distance u of good patches that are not in the bank.
    """

    def __init__(self, patches: Float[Tensor, "n channels"], features: lite0.Lite0):
        """Make a bank of good patches, at least 2; some are held out for the unit."""
        super().__init__()
        self._features = features
        spread = patches.std(dim=0).clamp_min(1e-3)
        held_out = min(_HELD_OUT, len(patches) // 10 + 1)
        self.spread = nn.Parameter(spread, requires_grad=False)
        self.bank = nn.Parameter((patches / spread)[held_out:], requires_grad=False)
        unit = self._distances((patches / spread)[:held_out]).mean().clamp_min(1e-6)
        self.unit = nn.Parameter(unit, requires_grad=False)

    @torch.no_grad()
    def forward(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 2 height width"]:
        """Logits for images in [0, 1], whose sides are multiples of 32."""
        patches = patch_features(self._features, lite0.as_levels(image)) / self.spread
        distances = self._distances(patches.flatten(0, 2)).reshape(patches.shape[:3])
        maps = F.interpolate(
            _smoothed(distances[:, None]),
            image.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        relative = (maps / self.unit).clamp_min(1e-6).log()
        return torch.cat([torch.zeros_like(relative), relative], dim=1)

    def _distances(self, patches: Float[Tensor, "n channels"]) -> Float[Tensor, " n"]:
        squares = self.bank.square().sum(dim=1)
        neighbours = min(NEIGHBOURS, len(self.bank))
        found = []
        for part in patches.split(_CHUNK):
            square = part.square().sum(dim=1, keepdim=True) + squares - 2 * part @ self.bank.T
            nearest = square.topk(neighbours, dim=1, largest=False).values
            found.append(nearest.clamp_min(0).sqrt().mean(dim=1))
        return torch.cat(found)


@torch.no_grad()
def memory_bank(
    images: Iterable[UInt8[Tensor, "3 height width"]],
    num_images: int,
    patches: int,
    seed: int,
    device: str,
) -> MemoryBank:
    """A bank of so many random patches, about as many of each of the good images."""
    features = lite0.shared(device)
    each = math.ceil(patches / num_images)
    generator = torch.Generator().manual_seed(derive_seed("bank", seed))
    rows = []
    for image in images:
        own = patch_features(features, image[None]).flatten(0, 2)
        rows.append(own[torch.randperm(len(own), generator=generator)[:each].to(own.device)])
    kept = torch.cat(rows)
    order = torch.randperm(len(kept), generator=generator)[:patches]
    return MemoryBank(kept[order.to(kept.device)], features).to(device)


def patch_features(
    features: lite0.Lite0, images: UInt8[Tensor, "n 3 height width"]
) -> Float[Tensor, "n rows columns channels"]:
    """Neighbourhood means of two stages at stride 8."""
    stages = [
        F.avg_pool2d(stage, 3, 1, 1, count_include_pad=False)
        for number, stage in enumerate(features.stages(images))
        if number in _STAGES
    ]
    size = stages[0].shape[-2:]
    stages = [
        F.interpolate(stage, size, mode="bilinear", align_corners=False) for stage in stages
    ]
    return torch.cat(stages, dim=1).permute(0, 2, 3, 1)


def _smoothed(maps: Float[Tensor, "n 1 rows columns"]) -> Float[Tensor, "n 1 rows columns"]:
    """Convolve with a Gaussian of 3 x 3, the border repeated."""
    line = torch.exp(-0.5 * (torch.arange(-1, 2, device=maps.device) / _SMOOTHED) ** 2)
    line = line / line.sum()
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, torch.outer(line, line)[None, None])
