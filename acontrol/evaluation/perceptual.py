"""LPIPS (Zhang et al., CVPR 2018) over VGG-16, as feature maps whose distances are LPIPS.

torchmetrics' own needs torchvision, which has no build for CPU-only torch, and pickled
weights; this one reads safetensors.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acontrol.evaluation.features import Images, read_weights

SIDE = 256
_SLICES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LpipsVgg(nn.Module):
    """VGG-16 with torchvision's parameter names, and heads named as in lpips."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        self.taps = []
        before = 3
        for level, widths in enumerate(_SLICES):
            layers += [nn.MaxPool2d(2)] if level else []
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        for level, widths in enumerate(_SLICES):
            head = nn.Sequential(nn.Dropout(), nn.Conv2d(widths[-1], 1, 1, bias=False))
            self.add_module(f"lin{level}", nn.ModuleDict({"model": head}))
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, file: Path) -> "LpipsVgg":
        """Read weights from safetensors.

        Raises:
            UserError: If the file is missing or holds other weights.
        """
        network = cls()
        read_weights(network, file, "lpips-vgg", "VGG-16 and LPIPS")
        return network

    def forward(self, images: Images) -> list[Tensor]:
        """Feature maps of images in [0, 255], resized to 256 px."""
        x = images.to(self.get_parameter("features.0.weight").device).float() / 127.5 - 1
        if x.shape[-1] != SIDE:
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(-1, 1)
        shift, scale = (
            torch.tensor(values, device=x.device)[:, None, None] for values in (_SHIFT, _SCALE)
        )
        x = (x - shift) / scale
        maps: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                unit = x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
                head = self.get_submodule(f"lin{len(maps)}.model.1").get_parameter("weight")
                maps.append(unit * head.sqrt())  # LPIPS's heads are non-negative.
        return maps
