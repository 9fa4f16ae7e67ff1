"""The Inception-v3 of Inception Score and KID: TensorFlow's of 2015-12-05.

Unlike torchvision's, its average pooling excludes padding, the last block uses max pooling, it
has 1,008 classes, and images are resized as in TensorFlow 1. torch-fidelity has it, but needs
torchvision, which has no build for CPU-only torch, and unpickles weights.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from acontrol.evaluation.features import Images, read_weights

SIDE = 299
WIDTH = 2048  # Of embeddings.
CLASSES = 1008
# A convolution: name, output channels, kernel height and width, stride, padded or not.
_Layer = tuple[str, int, int, int, int, bool]
_Chain = Sequence[_Layer | tuple[_Layer, _Layer]]  # A pair's outputs are concatenated.


class Inception(nn.Module):
    """Inception-v3 with the parameter names of pytorch-fid and torch-fidelity."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, (3, 3), 2, False)
        self.Conv2d_2a_3x3 = _Unit(32, 32, (3, 3), 1, False)
        self.Conv2d_2b_3x3 = _Unit(32, 64, (3, 3), 1, True)
        self.Conv2d_3b_1x1 = _Unit(64, 80, (1, 1), 1, False)
        self.Conv2d_4a_3x3 = _Unit(80, 192, (3, 3), 1, False)
        self.Mixed_5b = _fives(192, 32)
        self.Mixed_5c = _fives(256, 64)
        self.Mixed_5d = _fives(288, 64)
        self.Mixed_6a = _Mixed(
            288, [[_at("branch3x3", 384, 3, 3, 2)], _doubled(64, 96, 2)], nn.MaxPool2d(3, 2)
        )
        self.Mixed_6b = _sevens(128)
        self.Mixed_6c = _sevens(160)
        self.Mixed_6d = _sevens(160)
        self.Mixed_6e = _sevens(192)
        self.Mixed_7a = _Mixed(
            768,
            [
                [_at("branch3x3_1", 192), _at("branch3x3_2", 320, 3, 3, 2)],
                [
                    _at("branch7x7x3_1", 192),
                    _at("branch7x7x3_2", 192, 1, 7),
                    _at("branch7x7x3_3", 192, 7, 1),
                    _at("branch7x7x3_4", 192, 3, 3, 2),
                ],
            ],
            nn.MaxPool2d(3, 2),
        )
        self.Mixed_7b = _last(1280, _mean_pool())
        self.Mixed_7c = _last(2048, nn.MaxPool2d(3, 1, 1))
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, file: Path) -> "Inception":
        """Read weights from safetensors.

        Raises:
            UserError: If the file is missing or holds other weights.
        """
        network = cls()
        read_weights(network, file, "inception", "Inception-v3 (2015-12-05)")
        return network

    def embed(self, images: Images) -> Float[Tensor, "n 2048"]:
        """Vectors of images: the last feature maps averaged over positions."""
        weight = self.fc.weight
        x = (resize(images.to(weight.device, weight.dtype), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))

    def logits(self, vectors: Float[Tensor, "n 2048"]) -> Float[Tensor, "n 1008"]:
        """Class logits of `embed`'s vectors, without the bias as for the Inception Score."""
        return vectors @ self.fc.weight.to(vectors).T


def resize(images: Float[Tensor, "n 3 height width"], side: int) -> Tensor:
    """Resize bilinearly with pixel 0 at 0 as in TensorFlow 1; torch aligns pixel centers."""
    for axis in (2, 3):
        length = images.shape[axis]
        # TensorFlow computes the scale in single precision, whatever the images' type.
        scale = torch.tensor(length / side, dtype=torch.float32).to(images)
        at = torch.arange(side, dtype=images.dtype, device=images.device) * scale
        low = at.long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        share = (at - low).view(-1, *[1] * (3 - axis))
        before, after = images.index_select(axis, low), images.index_select(axis, high)
        images = before + (after - before) * share
    return images


class _Unit(nn.Module):
    """Convolution without bias, batch normalization, ReLU."""

    def __init__(
        self, before: int, after: int, kernel: tuple[int, int], stride: int, padded: bool
    ):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Parallel chains of convolutions and a pooled branch, concatenated."""

    def __init__(self, before: int, chains: Sequence[_Chain], pool: nn.Module, pooled: int = 0):
        super().__init__()
        self.pool = pool
        self.chains: list[list[tuple[str, ...]]] = []
        for chain in chains:
            names, width = [], before
            for layers in chain:
                row = [layers] if len(layers) != 2 else layers
                for name, after, height, wide, stride, padded in row:
                    unit = _Unit(width, after, (height, wide), stride, padded)
                    self.add_module(name, unit)
                names.append(tuple(layer[0] for layer in row))
                width = row[0][1]
            self.chains.append(names)
        self.branch_pool = _Unit(before, pooled, (1, 1), 1, True) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for chain in self.chains:
            y = x
            for names in chain:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            parts.append(y)
        return torch.cat([*parts, self.branch_pool(self.pool(x))], dim=1)


def _mean_pool() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _at(name: str, after: int, height: int = 1, width: int = 1, stride: int = 1) -> _Layer:
    return (name, after, height, width, stride, stride == 1)


def _doubled(first: int, after: int, stride: int) -> _Chain:
    return [
        _at("branch3x3dbl_1", first),
        _at("branch3x3dbl_2", after, 3, 3),
        _at("branch3x3dbl_3", after, 3, 3, stride),
    ]


def _fives(before: int, pooled: int) -> _Mixed:
    fives = [_at("branch5x5_1", 48), _at("branch5x5_2", 64, 5, 5)]
    return _Mixed(
        before, [[_at("branch1x1", 64)], fives, _doubled(64, 96, 1)], _mean_pool(), pooled
    )


def _sevens(inner: int) -> _Mixed:
    return _Mixed(
        768,
        [
            [_at("branch1x1", 192)],
            [
                _at("branch7x7_1", inner),
                _at("branch7x7_2", inner, 1, 7),
                _at("branch7x7_3", 192, 7, 1),
            ],
            [
                _at("branch7x7dbl_1", inner),
                _at("branch7x7dbl_2", inner, 7, 1),
                _at("branch7x7dbl_3", inner, 1, 7),
                _at("branch7x7dbl_4", inner, 7, 1),
                _at("branch7x7dbl_5", 192, 1, 7),
            ],
        ],
        _mean_pool(),
        192,
    )


def _last(before: int, pool: nn.Module) -> _Mixed:
    def fork(name: str) -> tuple[_Layer, _Layer]:
        return _at(f"{name}a", 384, 1, 3), _at(f"{name}b", 384, 3, 1)

    return _Mixed(
        before,
        [
            [_at("branch1x1", 320)],
            [_at("branch3x3_1", 384), fork("branch3x3_2")],
            [
                _at("branch3x3dbl_1", 448),
                _at("branch3x3dbl_2", 384, 3, 3),
                fork("branch3x3dbl_3"),
            ],
        ],
        pool,
        192,
    )
