"""The localization detector: the discriminative U-Net of DRAEM, on the image alone.

Zavrtanik, Kristan, Skocaj: "DRAEM", ICCV 2021. DRAEM feeds it image and reconstruction (6
channels; see `draem`); the synthesis papers' downstream protocol trains it on the image (3).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

FOCUS = 2.0  # Gamma of the focal loss.
_POOL_SHARE = 21 / 256  # The image score's window over the side: 21 px at 256.


class DetectorUNet(nn.Module):
    """Logits of normal and defect per pixel; the image's sides are multiples of 32."""

    def __init__(self, width: int, channels: int = 3):
        """Build with DRAEM's initial weights, drawn from torch's generator."""
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width]
        self.down = nn.ModuleList(
            block(before, after)
            for before, after in zip([channels, *widths[:-1]], widths, strict=True)
        )
        # On each way up: halve the channels, join the skip, mix.
        ups = [8 * width, 4 * width, 2 * width, width, width]
        skips = widths[-2::-1]
        self.up = nn.ModuleList(
            convolution(before, after)
            for before, after in zip([8 * width, *ups[:-1]], ups, strict=True)
        )
        self.join = nn.ModuleList(
            block(up + skip, up) for up, skip in zip(ups, skips, strict=True)
        )
        self.out = nn.Conv2d(width, 2, 3, padding=1)
        draems_weights(self)

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch 2 height width"]:
        """Logits for images in [0, 1]."""
        skips = []
        x = image
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = join(torch.cat([up(larger), skips.pop()], dim=1))
        return self.out(x)


def focal_loss(
    logits: Float[Tensor, "batch 2 height width"], mask: Bool[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Mean of -(1 - p)^gamma log p, p the softmax of the true class (Lin et al., 2017)."""
    log_p = F.log_softmax(logits, dim=1).gather(1, mask[:, None].long())
    return -((1 - log_p.exp()) ** FOCUS * log_p).mean()


def image_scores(
    maps: Float[Tensor, "image height width"], whole: int | None = None
) -> Float[Tensor, " image"]:
    """The largest window mean of each anomaly map, padded with 0.

    The window is a share of ``whole``, by default the map's side.
    """
    side = round(_POOL_SHARE * (whole or maps.shape[-1])) // 2 * 2 + 1
    pooled = maps[:, None]
    for window in ((1, side), (side, 1)):  # A twentieth of the work of the square at once.
        around = (window[0] // 2, window[1] // 2)
        pooled = F.avg_pool2d(pooled, window, stride=1, padding=around)
    return pooled.flatten(1).amax(dim=1)


def convolution(before: int, after: int) -> nn.Sequential:
    """DRAEM's layer: 3 x 3, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def block(before: int, after: int) -> nn.Sequential:
    """Two layers; the first changes the number of channels."""
    return nn.Sequential(convolution(before, after), convolution(after, after))


def draems_weights(network: nn.Module) -> None:
    """Draw DRAEM's initial weights from torch's generator."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
