"""Images of one category in memory, at the detector's size, with their masks."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from acontrol.data.images import fit, read_image
from acontrol.data.mvtec import LabelledImage
from acontrol.errors import UserError

_WHOLE = 1 - 1e-6  # Bilinear weights add up to 1 within rounding.


@dataclass(frozen=True)
class ImageSet:
    """Images, one after the other.

    Attributes:
        images: (n, 3, S, S) in [0, 255].
        masks: (n, S, S), True on the defect; a defect thinner than a pixel keeps every pixel
            that it touches.
        truncated: (n, S, S), the masks as the published scripts make them: resized bilinearly
            and cut to whole numbers, so that only pixels wholly in the defect are left.
        kinds: Defect of each, "good" without one.
        files: Where each is from.
        digests: Digest of each one's decoded pixels.
    """

    images: UInt8[Tensor, "n 3 side side"]
    masks: Bool[Tensor, "n side side"]
    truncated: Bool[Tensor, "n side side"]
    kinds: tuple[str, ...]
    files: tuple[Path, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.files)

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """Which have a defect."""
        return np.array([kind != "good" for kind in self.kinds], dtype=bool)


def load(normals: Sequence[Path], labelled: Sequence[LabelledImage], size: int) -> ImageSet:
    """Read normal images, then labelled ones.

    Raises:
        UserError: If one is bad, or a labelled one has no fitting mask.
    """
    images, masks, truncated, digests = [], [], [], []
    rows: Iterable[tuple[Path, LabelledImage | None]] = [
        *((path, None) for path in normals),
        *((one.image, one) for one in labelled),
    ]
    for path, one in rows:
        pixels = read_image(path)
        truth = np.zeros(pixels.shape[:2], dtype=bool) if one is None else one.read_mask()
        image, mask = fit(Image.fromarray(pixels), Image.fromarray(truth), size)
        images.append(((image + 1) * 127.5).round().to(torch.uint8))
        masks.append((mask[0] > 0) & bool(truth.any()))
        truncated.append(truncate(torch.from_numpy(truth), size))
        digests.append(digest(pixels))
    return ImageSet(
        torch.stack(images) if images else torch.zeros(0, 3, size, size, dtype=torch.uint8),
        torch.stack(masks) if masks else torch.zeros(0, size, size, dtype=torch.bool),
        torch.stack(truncated) if masks else torch.zeros(0, size, size, dtype=torch.bool),
        tuple("good" if one is None else one.defect for _, one in rows),
        tuple(path for path, _ in rows),
        tuple(digests),
    )


def truncate(mask: Bool[Tensor, "height width"], size: int) -> Bool[Tensor, "size size"]:
    """Resize bilinearly, then cut to whole numbers, as the published evaluation does."""
    resized = torch.nn.functional.interpolate(
        mask[None, None].double(), size=(size, size), mode="bilinear", align_corners=False
    )
    return resized[0, 0] >= _WHOLE


def digest(pixels: npt.NDArray[np.uint8]) -> str:
    """A digest of an image's pixels, whatever file format they came in."""
    shape = "x".join(str(length) for length in pixels.shape)
    return hashlib.sha256(shape.encode() + pixels.tobytes()).hexdigest()


def refuse_leaks(test: ImageSet, training: Iterable[ImageSet]) -> None:
    """Refuse a test image that is also trained on.

    Raises:
        UserError: Naming the first of both.
    """
    known = dict(zip(test.digests, test.files, strict=True))
    found = [
        (known[one], file)
        for part in training
        for one, file in zip(part.digests, part.files, strict=True)
        if one in known
    ]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(
            f"{found[0][1]}: is the test image {found[0][0]}, pixel by pixel{more}; a detector "
            "must not train on what it is tested with: remove one of them"
        )
