"""DRAEM whole: one network restores the image without its defect, another compares the two.

Zavrtanik, Kristan, Skocaj: "DRAEM", ICCV 2021. As published it is trained on source `perlin`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from acontrol.evaluation.detector import (
    DetectorUNet,
    block,
    convolution,
    draems_weights,
    focal_loss,
)

_WIDER = 2  # The restoring network's channels, in those of the comparing one.

Batch = Float[Tensor, "batch 3 height width"]


class Restorer(nn.Module):
    """An autoencoder without skips; the image's sides are multiples of 16."""

    def __init__(self, width: int):
        """Build with DRAEM's initial weights, drawn from torch's generator."""
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.down = nn.ModuleList(
            block(before, after)
            for before, after in zip([3, *widths[:-1]], widths, strict=True)
        )
        # On each way up: enlarge, mix twice, halve the channels.
        ups = [8 * width, 4 * width, 2 * width, width]
        afters = [4 * width, 2 * width, width, width]
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.UpsamplingBilinear2d(scale_factor=2),
                convolution(up, up),
                convolution(up, up),
                convolution(up, after),
            )
            for up, after in zip(ups, afters, strict=True)
        )
        self.out = nn.Conv2d(width, 3, 3, padding=1)
        draems_weights(self)

    def forward(self, image: Batch) -> Batch:
        """The image in [0, 1] as it would be without a defect."""
        x = image
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
        for up in self.up:
            x = up(x)
        return self.out(x)


class DraemDetector(nn.Module):
    """Logits of normal and defect per pixel; the image's sides are multiples of 32."""

    def __init__(self, width: int):
        """Build the pair; ``width`` is the U-Net's, and half of the restoring network's."""
        super().__init__()
        self.restorer = Restorer(_WIDER * width)
        self.comparer = DetectorUNet(width, channels=6)

    def forward(self, image: Batch) -> Float[Tensor, "batch 2 height width"]:
        """Logits for images in [0, 1]."""
        return self.compared(image)[1]

    def compared(self, image: Batch) -> tuple[Batch, Float[Tensor, "batch 2 height width"]]:
        """The restored images, and the logits that follow from both."""
        restored = self.restorer(image)
        return restored, self.comparer(torch.cat([restored, image], dim=1))


def draem_loss(
    detector: DraemDetector,
    images: Float[Tensor, "batch 6 height width"],
    mask: Bool[Tensor, "batch height width"],
) -> Float[Tensor, ""]:
    """Mean square, 1 - SSIM, and the focal loss, added with equal weights.

    ``images`` are the image and, in the last three channels, its original without the defect.
    Where the two are equal in the mask nobody knows the original, and nothing is asked of the
    restored pixels there.
    """
    image, original = images[:, :3], images[:, 3:]
    restored, logits = detector.compared(image)
    unknown = mask & (image == original).all(dim=1)
    seen = torch.where(unknown[:, None], original, restored)
    similarity = structural_similarity_index_measure(seen, original, data_range=1.0)
    assert isinstance(similarity, Tensor)
    return F.mse_loss(seen, original) + 1 - similarity + focal_loss(logits, mask)
