"""Images of one category in memory, at the detector's size, with masks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from acontrol.data.images import fit, pixel_digest, read_image
from acontrol.data.mvtec import LabelledImage

_WHOLE = 1 - 1e-6  # Bilinear weights sum to 1 up to rounding.


@dataclass(frozen=True)
class ImageSet:
    """A batch of images.

    Attributes:
        images: (n, 3, S, S) in [0, 255].
        masks: (n, S, S), True on the defect; a defect thinner than a pixel keeps every pixel
            that it touches.
        truncated: (n, S, S), masks of the published scripts: resized bilinearly and truncated
            to integers, so that only pixels wholly in the defect are left.
        defects: Defect type of each, or "good".
        files: File of each.
        digests: Digest of each image's decoded pixels.
    """

    images: UInt8[Tensor, "n 3 side side"]
    masks: Bool[Tensor, "n side side"]
    truncated: Bool[Tensor, "n side side"]
    defects: tuple[str, ...]
    files: tuple[Path, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """Some of the images."""
        index = torch.tensor(indices, dtype=torch.long)
        return ImageSet(
            self.images[index],
            self.masks[index],
            self.truncated[index],
            tuple(self.defects[i] for i in indices),
            tuple(self.files[i] for i in indices),
            tuple(self.digests[i] for i in indices),
        )

    def __add__(self, other: "ImageSet") -> "ImageSet":
        """These images, then others of the same size."""
        return ImageSet(
            torch.cat([self.images, other.images]),
            torch.cat([self.masks, other.masks]),
            torch.cat([self.truncated, other.truncated]),
            self.defects + other.defects,
            self.files + other.files,
            self.digests + other.digests,
        )

    def at(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """An image and its mask; nothing about them is random."""
        return self.images[index], self.masks[index]

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw an image and its mask."""
        return self.at(int(rng.integers(len(self))), rng)

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """Which images have a defect."""
        return np.array([defect != "good" for defect in self.defects], dtype=bool)


def load(normals: Sequence[Path], labelled: Sequence[LabelledImage], size: int) -> ImageSet:
    """Read normal images, then labelled ones.

    Raises:
        UserError: If an image is bad, or the mask of a labelled one is bad or missing.
    """
    images, masks, truncated, digests = [], [], [], []
    rows: Iterable[tuple[Path, LabelledImage | None]] = [
        *((path, None) for path in normals),
        *((row.image, row) for row in labelled),
    ]
    for path, row in rows:
        pixels = read_image(path)
        truth = np.zeros(pixels.shape[:2], dtype=bool) if row is None else row.read_mask()
        image, mask = fit(Image.fromarray(pixels), Image.fromarray(truth), size)
        images.append(((image + 1) * 127.5).round().to(torch.uint8))
        masks.append((mask[0] > 0) & bool(truth.any()))
        truncated.append(truncate(torch.from_numpy(truth), size))
        digests.append(pixel_digest(pixels))
    return ImageSet(
        torch.stack(images) if images else torch.zeros(0, 3, size, size, dtype=torch.uint8),
        torch.stack(masks) if masks else torch.zeros(0, size, size, dtype=torch.bool),
        torch.stack(truncated) if masks else torch.zeros(0, size, size, dtype=torch.bool),
        tuple("good" if row is None else row.defect for _, row in rows),
        tuple(path for path, _ in rows),
        tuple(digests),
    )


def truncate(mask: Bool[Tensor, "height width"], size: int) -> Bool[Tensor, "size size"]:
    """Resize bilinearly and truncate to integers, as the published evaluation does."""
    resized = torch.nn.functional.interpolate(
        mask[None, None].double(), size=(size, size), mode="bilinear", align_corners=False
    )
    return resized[0, 0] >= _WHOLE
