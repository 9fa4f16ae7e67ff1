"""What a base sees of a photograph: all of it squashed, or squares of its own pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.data.crops import bounds, label_components
from acontrol.data.images import fit

BRIGHTNESS = (0.85, 1.15)  # Factors of the pixels.


class Photograph:
    """An image with its mask, all of it empty on a good product, to take views of."""

    def __init__(self, image: Image.Image, mask: Image.Image):
        """Find the components of the defect."""
        self.image, self.mask = image, mask
        self._labels, self._sizes = np.zeros((0, 0), np.int32), np.zeros(0, np.int64)
        if mask.getbbox() is not None:  # Labelling nothing takes a second of a large image.
            self._labels, self._sizes = label_components(np.asarray(mask))

    def whole(self, rng: np.random.Generator, resolution: int) -> tuple[Tensor, Tensor]:
        """At least three quarters of each side, with all of the defect, squashed to a square.

        Returns:
            As `resized`, mirrored half of the time.
        """
        width, height = self.image.size
        left, top, right, bottom = self.mask.getbbox() or (width, height, 0, 0)
        low = rng.random(2) * 0.25 * (width, height)
        x, y = min(int(low[0]), left), min(int(low[1]), top)
        far = rng.uniform(0.75, 1, 2) * (width, height)
        box = (x, y, max(x + 8, int(far[0]), right), max(y + 8, int(far[1]), bottom))
        image, mask = self.image.crop(box), self.mask.crop(box)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return resized(image, mask, resolution)

    def square(
        self, rng: np.random.Generator, resolution: int, scale: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """A square of original pixels, with a component of the defect anywhere inside.

        Of a component that is larger than the square a part is inside. A photograph that is
        smaller than the square gives the largest one that it has, magnified.

        Args:
            rng: Where and at which scale.
            resolution: Side of the view.
            scale: Pixels of the view per pixel of the photograph, or the bounds of it.

        Returns:
            As `resized`.
        """
        least, most = min(scale), max(scale)
        chosen = least * (most / least) ** rng.random()
        side = min(round(resolution / chosen), *self.image.size)
        ranges = [(0, length - side) for length in self.image.size]
        if len(self._sizes):
            # By pixels, or specks beside a defect would be shown as often as itself.
            number = 1 + rng.choice(len(self._sizes), p=self._sizes / self._sizes.sum())
            component = self._labels == number
            box, rows_columns = bounds(component), np.argwhere(component)
            pixel = rows_columns[rng.integers(len(rows_columns))][::-1].tolist()
            for axis, (first, last) in enumerate(ranges):
                start, end = box[axis], box[axis + 2]
                if end - start > side:
                    start, end = pixel[axis], pixel[axis] + 1
                ranges[axis] = max(first, end - side), min(last, start)
        x, y = (int(rng.integers(first, last + 1)) for first, last in ranges)
        box = (x, y, x + side, y + side)
        return resized(self.image.crop(box), self.mask.crop(box), resolution)


@dataclass(frozen=True)
class Orientations:
    """Which of a square's eight orientations are like its product's photographs.

    Attributes:
        quarter_turns: Whether those turned by a right angle are.
        mirrors: Whether mirrored ones are.
    """

    quarter_turns: bool = True
    mirrors: bool = True


def augmented(
    image: Tensor, mask: Tensor, rng: np.random.Generator, allowed: Orientations | None = None
) -> tuple[Tensor, Tensor]:
    """A square in a random orientation of these, darker or brighter; grey stays grey."""
    allowed = allowed or Orientations()
    turns, mirrored, factor = int(rng.integers(4)), rng.random() < 0.5, rng.uniform(*BRIGHTNESS)
    if not allowed.quarter_turns:
        turns = 2 * (turns % 2)
    image, mask = (torch.rot90(part, turns, (1, 2)) for part in (image, mask))
    if mirrored and allowed.mirrors:
        image, mask = image.flip(2), mask.flip(2)
    return (image.float() * factor).round().clamp(0, 255).to(torch.uint8), mask


def streaks(image: Tensor) -> tuple[float, float]:
    """How an image's streaks run, by the spread of its gradients; even shading has none.

    Returns:
        Log of the spread across by that down, over 0 if they stand and under 0 if they lie; and
        the correlation of the two, from -1 to 1, not 0 if they are slanted. Both near 0 without
        a direction.
    """
    levels = image.float().mean(dim=0)
    # Both in the middle of four pixels, so that a mirrored image has the opposite slant.
    across, down = levels.diff(dim=1), levels.diff(dim=0)
    across, down = across[1:] + across[:-1], down[:, 1:] + down[:, :-1]
    across, down = across - across.mean(), down - down.mean()
    spreads = float(across.square().mean()) + 1e-3, float(down.square().mean()) + 1e-3
    slant = float((across * down).mean()) / math.sqrt(math.prod(spreads))
    return math.log(spreads[0] / spreads[1]), slant


def resized(image: Image.Image, mask: Image.Image, size: int) -> tuple[Tensor, Tensor]:
    """(3, size, size) uint8 and (1, size, size) bool."""
    empty = mask.getbbox() is None
    # `fit` keeps a defect of any size, and would invent one in an empty mask.
    pixels, covered = fit(image, Image.new("1", image.size, 1) if empty else mask, size)
    levels = ((pixels + 1) * 127.5).round().to(torch.uint8)
    return levels, torch.zeros_like(covered, dtype=torch.bool) if empty else covered.bool()
