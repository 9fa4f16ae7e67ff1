"""Images at their own scale: random crops to train on, whole images by tiles to test on.

Resized to a square, a small defect on a large image vanishes. Here an image is read when it is
needed, and a process keeps so many bytes of them at most.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn

from acontrol.data.images import read_image, shrink_mask
from acontrol.data.mvtec import LabelledImage
from acontrol.evaluation.sources import Sample

_CACHED_BYTES = 2**30
_OVERLAP = 0.25  # Of neighbouring tiles, at least, as a share of their side.
_BATCH = 8  # Tiles that are computed at once.

Whole = tuple[UInt8[Tensor, "3 height width"], Bool[Tensor, "height width"]]

_cache: OrderedDict[tuple[Path, float], Whole] = OrderedDict()


class WholeImages:
    """Images of one category at a scale; what is drawn of them are crops.

    A crop of an image with a defect shows some of the defect: a random pixel of it lies at a
    random place of the crop. Images smaller than a crop are continued by their reflection.
    """

    def __init__(
        self,
        normals: Sequence[Path],
        labelled: Sequence[LabelledImage],
        side: int,
        scale: float = 1.0,
    ):
        """List images; nothing is read. ``side`` is that of crops and tiles, in pixels."""
        self._rows: list[tuple[Path, LabelledImage | None]] = [
            *((path, None) for path in normals),
            *((row.image, row) for row in labelled),
        ]
        self.side, self.scale = side, scale
        self._defects = tuple("good" if row is None else row.defect for _, row in self._rows)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    @property
    def files(self) -> list[Path]:
        """The image files."""
        return [path for path, _ in self._rows]

    @property
    def defects(self) -> tuple[str, ...]:
        """Defect type of each, or "good"."""
        return self._defects

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """Which images have a defect."""
        return np.array([defect != "good" for defect in self.defects], dtype=bool)

    def read(self, index: int) -> Whole:
        """A whole image at the scale, and its mask."""
        path, row = self._rows[index]
        key = (path, self.scale)
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
        image = Image.fromarray(read_image(path))
        truth = Image.new("1", image.size) if row is None else Image.fromarray(row.read_mask())
        if self.scale != 1:
            width, height = (max(1, round(self.scale * length)) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            if row is not None:
                truth = shrink_mask(truth, (width, height))
            else:
                truth = truth.resize((width, height))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        _cache[key] = pixels, torch.from_numpy(np.array(truth, dtype=bool))
        while len(_cache) > 1 and sum(map(_bytes, _cache.values())) > _CACHED_BYTES:
            _cache.popitem(last=False)
        return _cache[key]

    def at(self, index: int, rng: np.random.Generator) -> Sample:
        """A random crop of an image."""
        image, mask = (continued(part, self.side) for part in self.read(index))
        places = torch.nonzero(mask)
        inside = tuple(int(rng.integers(self.side)) for _ in range(2))
        room = [length - self.side for length in mask.shape]
        if len(places):
            chosen = places[int(rng.integers(len(places)))].tolist()
            starts = [place - offset for place, offset in zip(chosen, inside, strict=True)]
            top, left = (
                min(max(start, 0), most) for start, most in zip(starts, room, strict=True)
            )
        else:
            top, left = (int(rng.integers(most + 1)) for most in room)
        window = (slice(top, top + self.side), slice(left, left + self.side))
        return image[:, *window].contiguous(), mask[window].contiguous()

    def sample(self, rng: np.random.Generator) -> Sample:
        """A random crop of a random image."""
        return self.at(int(rng.integers(len(self))), rng)


def continued(pixels: Tensor, side: int) -> Tensor:
    """Continue the last two axes by reflection to at least a side."""
    more = [max(0, side - length) for length in pixels.shape[-2:]]
    if not any(more):
        return pixels
    widths = [(0, 0)] * (pixels.ndim - 2) + [(0, extra) for extra in more]
    return torch.from_numpy(np.pad(pixels.numpy(), widths, mode="symmetric"))


def starts(length: int, side: int) -> list[int]:
    """Where tiles begin along an axis: they cover it, and overlap."""
    if length <= side:
        return [0]
    number = 1 + int(np.ceil((length - side) / (side * (1 - _OVERLAP))))
    return np.linspace(0, length - side, number).round().astype(int).tolist()


@torch.no_grad()
def logit_map(
    detector: nn.Module, image: UInt8[Tensor, "3 height width"], side: int
) -> Float[Tensor, "height width"]:
    """The logit of a defect at each pixel of a whole image.

    Tiles overlap; where they do it is their mean, weighted down towards a tile's border.
    """
    height, width = image.shape[-2:]
    whole = continued(image, side)
    line = 1 - (torch.arange(side) - (side - 1) / 2).abs() / (side / 2 + 1)
    window = torch.outer(line, line)
    total, weight = torch.zeros(2, *whole.shape[-2:])
    corners = [
        (top, left)
        for top in starts(whole.shape[-2], side)
        for left in starts(whole.shape[-1], side)
    ]
    device = next(detector.parameters()).device
    for first in range(0, len(corners), _BATCH):
        batch = corners[first : first + _BATCH]
        tiles = [whole[:, top : top + side, left : left + side] for top, left in batch]
        logits = detector(torch.stack(tiles).to(device).float() / 255).cpu()
        for (top, left), own in zip(batch, logits[:, 1] - logits[:, 0], strict=True):
            total[top : top + side, left : left + side] += window * own
            weight[top : top + side, left : left + side] += window
    return (total / weight)[:height, :width]


def resized(probabilities: Float[Tensor, "height width"], size: int) -> Tensor:
    """A map as a square for the report, (size, size) in [0, 255]."""
    square = F.interpolate(
        probabilities[None, None], (size, size), mode="bilinear", antialias=True
    )
    return (square[0, 0].clamp(0, 1) * 255).to(torch.uint8)


def _bytes(sample: Whole) -> int:
    return sum(part.numel() * part.element_size() for part in sample)
