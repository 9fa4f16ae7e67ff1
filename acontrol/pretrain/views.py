"""What a base sees of a photograph: all of it squashed, or squares of its own pixels."""

import math
from collections.abc import Sequence

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


def augmented(
    image: Tensor, mask: Tensor, rng: np.random.Generator, *, quarter_turns: bool = True
) -> tuple[Tensor, Tensor]:
    """One of a square's eight orientations, darker or brighter; grey stays grey.

    Without ``quarter_turns`` one of the four in which streaks keep their direction.
    """
    turns, mirrored, factor = int(rng.integers(4)), rng.random() < 0.5, rng.uniform(*BRIGHTNESS)
    turns = turns if quarter_turns else 2 * (turns % 2)
    image, mask = (torch.rot90(part, turns, (1, 2)) for part in (image, mask))
    if mirrored:
        image, mask = image.flip(2), mask.flip(2)
    return (image.float() * factor).round().clamp(0, 255).to(torch.uint8), mask


def uprightness(image: Tensor) -> float:
    """How upright an image's streaks are: log of its gradients' energy across by that down.

    Over 0 if they stand, under 0 if they lie, near 0 without a direction.
    """
    levels = image.float().mean(dim=0)
    across, down = (float(levels.diff(dim=axis).square().mean()) + 1e-3 for axis in (1, 0))
    return math.log(across / down)


def resized(image: Image.Image, mask: Image.Image, size: int) -> tuple[Tensor, Tensor]:
    """(3, size, size) uint8 and (1, size, size) bool."""
    empty = mask.getbbox() is None
    # `fit` keeps a defect of any size, and would invent one in an empty mask.
    pixels, covered = fit(image, Image.new("1", image.size, 1) if empty else mask, size)
    levels = ((pixels + 1) * 127.5).round().to(torch.uint8)
    return levels, torch.zeros_like(covered, dtype=torch.bool) if empty else covered.bool()
