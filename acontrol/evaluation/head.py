"""A small head on frozen ImageNet features, trained on masks: a detector in seconds."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from acontrol.evaluation import lite0


class HeadDetector(nn.Module):
    """Logits of normal and defect per pixel; the image's sides are multiples of 32.

    Each stage of the features is standardised by the normal images, projected to ``width``
    channels and brought to stride 4; a 3 x 3 convolution of their sum follows. There are some
    15,000 weights to train. The features have none: they are no module of this one.
    """

    def __init__(
        self,
        width: int,
        features: lite0.Lite0,
        normals: UInt8[Tensor, "n 3 height width"],
    ):
        """Build with random weights from torch's generator."""
        super().__init__()
        self._features = features
        self.project = nn.ModuleList(nn.Conv2d(own, width, 1) for own in lite0.CHANNELS)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 2, 1)
        for number, stage in enumerate(features.stages(normals)):
            self.register_buffer(f"mean{number}", stage.mean(dim=(0, 2, 3))[:, None, None])
            spread = stage.std(dim=(0, 2, 3)).clamp_min(1e-3)
            self.register_buffer(f"spread{number}", spread[:, None, None])

    def forward(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 2 height width"]:
        """Logits for images in [0, 1]."""
        total: Tensor | None = None
        for number, stage in enumerate(self._features.stages(lite0.as_levels(image))):
            mean, spread = getattr(self, f"mean{number}"), getattr(self, f"spread{number}")
            own = self.project[number]((stage - mean) / spread)
            if total is None:
                total = own
            else:
                size = total.shape[-2:]
                total = total + F.interpolate(own, size, mode="bilinear", align_corners=False)
        assert total is not None
        logits = self.out(F.relu(self.mix(F.relu(total))))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def balanced_loss(
    logits: Float[Tensor, "batch 2 height width"], mask: Bool[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Cross-entropy, half of it of defective pixels and half of normal ones.

    Each image with a defect counts alike, however large the defect. Without any the loss is
    that of the normal pixels.
    """
    # By sums over all pixels, as picking some out takes twice the time.
    losses = F.cross_entropy(logits, mask.long(), reduction="none").flatten(1)
    defective = mask.flatten(1).float()
    areas = defective.sum(dim=1)
    normal = (losses * (1 - defective)).sum() / (1 - defective).sum().clamp_min(1)
    by_image = (losses * defective).sum(dim=1) / areas.clamp_min(1)
    number = (areas > 0).sum()
    both = (normal + by_image.sum() / number.clamp_min(1)) / 2
    return torch.where(number > 0, both, normal)


@torch.no_grad()
def head_detector(
    width: int, normals: UInt8[Tensor, "n 3 height width"], device: str
) -> HeadDetector:
    """A head before its training, on this process's features."""
    return HeadDetector(width, lite0.shared(device), normals).to(device)
