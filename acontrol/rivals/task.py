"""What every method of drawing is given, and what it gives back."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from acontrol.config.sampling import Sampling
from acontrol.data.crops import Crop, around
from acontrol.data.images import image_size, read_image, read_mask
from acontrol.masks.shape import Mask
from acontrol.pipelines.compositing import Pixels

SEEN = 4.0  # Side of what a method without a network sees, in longest sides of the mask.
FADE = 2  # Pixels over which its edge fades in.


@dataclass(frozen=True)
class Task:
    """A defect to draw.

    Attributes:
        image: (H, W, 3), the part of a normal image that the method sees.
        mask: (H, W), where to draw; not empty.
        category: The normal image's product.
        defect: Name of the defect.
        reference_image: File of an image that shows the defect.
        reference_mask: File of its mask.
        phrase: The anomaly's words.
        prompt: Target text.
        seed: All randomness follows from it.
        sampling: Of methods that sample.
        under: (H, W, 3), what ``start reference`` puts under the noise where ``mask`` is a
            part of a defect; by default the reference's defect, warped into ``mask``.
    """

    image: Pixels
    mask: Mask
    category: str
    defect: str
    reference_image: Path
    reference_mask: Path
    phrase: str
    prompt: str
    seed: int
    sampling: Sampling
    under: Pixels | None = None

    def reference(self) -> tuple[Pixels, Mask]:
        """Read the reference: (H, W, 3) and (H, W).

        Raises:
            UserError: If a file is bad.
        """
        image = read_image(self.reference_image)
        mask = read_mask(self.reference_mask, image_size(self.reference_image))
        return image, np.asarray(mask)


@dataclass(frozen=True)
class Drawing:
    """A drawn defect, before it is composited.

    Attributes:
        pixels: (H, W, 3), of the task's size.
        pasted: (H, W), the part of the mask that holds the defect; None if only a comparison
            with the normal image can tell.
    """

    pixels: Pixels
    pasted: Mask | None = None


class Method(Protocol):
    """A way of drawing defects: a pure function of its tasks and its ``state``.

    Attributes:
        name: As --method names it.
    """

    name: str

    @property
    def state(self) -> Mapping[str, Any]:
        """All that decides its pixels besides the tasks, as JSON."""
        ...

    def crops(self, mask: Mask, crop: float | None) -> list[Crop]:
        """The parts of an image that are drawn one after the other.

        Args:
            mask: (height, width) of the image, not empty.
            crop: As `Sampling.crop`.
        """
        ...

    def fade_px(self, side: int) -> int:
        """Width of the edge of a drawing whose longer side has that many pixels."""
        ...

    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Draw a batch of tasks with the same sampling settings.

        Raises:
            UserError: If a reference is bad.
        """
        ...


class PixelMethod:
    """What methods without a network share: they see a mask and its surroundings at once."""

    def crops(self, mask: Mask, crop: float | None) -> list[Crop]:
        """One square around the whole mask."""
        return [around(mask, crop or SEEN)]

    def fade_px(self, side: int) -> int:
        """The same whatever the size: nothing was scaled."""
        return FADE


def digest(name: str, state: Mapping[str, Any], *more: str) -> str:
    """Sha256 of all that decides a method's pixels."""
    text = json.dumps([name, dict(state), *more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
