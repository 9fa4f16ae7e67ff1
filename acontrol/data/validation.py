"""Checks of a folder's images and masks before they are used."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.images import check_image
from acontrol.data.listing import image_files
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.errors import UserError
from acontrol.messages import counted

TOKENS = 16  # A side of BLIP-2's grid: 224 px in patches of 14.


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        good: Usable images.
        bad: A message for each of the others.
        small: Keys of good images whose defect covers less than half of any token, with the
            largest share of a token that it covers.
        large: Keys of good images whose mask covers over half of the image.
    """

    good: list[LabelledImage] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    small: dict[str, float] = field(default_factory=dict)
    large: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """A sentence for each thing that is accepted and may not be what was meant."""
        notes = []
        if self.small:
            key, share = min(self.small.items(), key=lambda item: item[1])
            notes.append(
                f"{len(self.small)} of {counted(len(self.good), 'defect')} "
                f"{'covers' if len(self.small) == 1 else 'cover'} less than half of every "
                f"token of BLIP-2's 16 x 16 (the smallest: {key}, {share:.2%} of one); kept, "
                "and --data.reference-view region shows them larger"
            )
        if len(self.large) > len(self.good) / 2:
            notes.append(
                f"{len(self.large)} of {counted(len(self.good), 'mask')} "
                f"{'covers' if len(self.large) == 1 else 'cover'} over half of the image "
                f"(the first: {self.large[0]}); if white is the good part, invert them"
            )
        return notes


def check(
    images: Sequence[LabelledImage],
    skip_bad: bool,
    *,
    resolution: int | None = None,
    progress: Callable[[Iterable[LabelledImage]], Iterable[LabelledImage]] = iter,
) -> Checked:
    """Decode each image and its mask.

    A mask is bad if the defect covers less than one pixel of the stored image. A mask that is
    only small on BLIP-2's grid of tokens is good: each token counts by the share that it covers
    (`anomaly_map.region_on_grid`).

    Args:
        images: From `MvtecFolder.labelled`.
        skip_bad: Leave out bad images, instead of stopping at the first.
        resolution: Longest shorter side of the stored images; None keeps the size.
        progress: Wraps the images, to show a progress bar.

    Raises:
        UserError: Without `skip_bad`, for the first bad image or mask.
    """
    clashes = _clashes(images)
    checked = Checked()
    for image in progress(images):
        try:
            if image.key in clashes:
                raise UserError(clashes[image.key])
            check_image(image.image)
            mask = image.read_mask()
            _require_pixel(image, mask, resolution)
        except UserError as error:
            if not skip_bad:
                raise
            checked.bad.append(str(error))
        else:
            checked.good.append(image)
            if (share := token_share(mask)) < 0.5:
                checked.small[image.key] = share
            if mask.mean() > 0.5:
                checked.large.append(image.key)
    return checked


def token_share(mask: npt.NDArray[np.bool_]) -> float:
    """Largest share of a token's cell that a mask (H, W) covers, in [0, 1]."""
    grey = Image.fromarray(mask.astype(np.float32))
    return float(np.asarray(grey.resize((TOKENS, TOKENS), Image.Resampling.BOX)).max())


def empty_defects(folder: MvtecFolder) -> list[str]:
    """A message for each empty defect folder."""
    return [
        f"{path}: holds no image; put the defect's images there, or remove the folder"
        for category in folder.categories
        for defect in folder.defect_types(category)
        for path in [folder.folders[category] / "test" / defect]
        if not image_files(path, nested=True)
    ]


def _require_pixel(
    image: LabelledImage, mask: npt.NDArray[np.bool_], resolution: int | None
) -> None:
    shorter = min(mask.shape)
    if resolution is None or shorter <= resolution:
        return
    area = mask.sum() * (resolution / shorter) ** 2
    if area < 1:
        raise UserError(
            f"{image.mask}: the defect's {mask.sum()} pixels are {area:.2g} of one at "
            f"resolution {resolution}; keep more pixels with --resolution, or remove the image"
        )


def _clashes(images: Sequence[LabelledImage]) -> dict[str, str]:
    """A message for each key that equals another on a file system that ignores case."""
    groups: dict[str, list[LabelledImage]] = {}
    for image in images:
        folded = unicodedata.normalize("NFC", image.key).casefold()
        groups.setdefault(folded, []).append(image)
    return {
        image.key: f"{image.image}: its name and {other.image}'s differ only in case or in the "
        "coding of accents, so unpacking shards may overwrite one; rename one"
        for group in groups.values()
        if len(group) > 1
        for image, other in zip(group, group[1:] + group[:1], strict=True)
    }
