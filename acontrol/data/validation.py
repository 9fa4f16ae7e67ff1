"""Whether the images and masks that a folder names can be used."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.images import check_image
from acontrol.data.mvtec import LabelledImage, MvtecFolder, image_files
from acontrol.errors import UserError

TOKENS = 16  # A side of BLIP-2's grid: 224 px in patches of 14.


@dataclass(frozen=True)
class Checked:
    """What came of a check.

    Attributes:
        good: Images that can be used.
        bad: What is wrong with each of the others.
        small: Keys of good images whose defect covers no half of a token, with the largest
            share of one that it covers.
    """

    good: list[LabelledImage] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    small: dict[str, float] = field(default_factory=dict)


def check(
    images: Sequence[LabelledImage],
    skip_bad: bool,
    *,
    resolution: int | None = None,
    progress: Callable[[Iterable[LabelledImage]], Iterable[LabelledImage]] = iter,
) -> Checked:
    """Decode each image and its mask.

    A mask vanishes, and is bad, where the defect covers less than one pixel of the image as it
    will be stored. One that is only small on the grid of BLIP-2's tokens is good: it keeps
    every token that it touches (`anomaly_map.region_on_grid`).

    Args:
        images: What `MvtecFolder.labelled` gives.
        skip_bad: Leave out what is bad, instead of stopping at the first.
        resolution: Images whose shorter side is longer will be scaled down to it.
        progress: Wraps the images, to show a progress bar.

    Raises:
        UserError: Without `skip_bad`, for the first bad image or mask.
    """
    clashes = _clashes(images)
    checked = Checked()
    for one in progress(images):
        try:
            if one.key in clashes:
                raise UserError(clashes[one.key])
            check_image(one.image)
            mask = one.read_mask()
            _refuse_vanishing(one, mask, resolution)
        except UserError as error:
            if not skip_bad:
                raise
            checked.bad.append(str(error))
        else:
            checked.good.append(one)
            if (covered := token_share(mask)) < 0.5:
                checked.small[one.key] = covered
    return checked


def token_share(mask: npt.NDArray[np.bool_]) -> float:
    """Largest share of a token's cell that a mask (H, W) covers, in [0, 1]."""
    picture = Image.fromarray(mask.astype(np.float32))
    cells = picture.resize((TOKENS, TOKENS), Image.Resampling.BOX)
    return float(np.asarray(cells).max())


def empty_defects(folder: MvtecFolder) -> list[str]:
    """A line for each defect folder that holds no image."""
    return [
        f"{place}: holds no image; put the defect's images there, or remove the folder"
        for category in folder.categories
        for defect in folder.defect_types(category)
        for place in [folder.folders[category] / "test" / defect]
        if not image_files(place)
    ]


def _refuse_vanishing(
    one: LabelledImage, mask: npt.NDArray[np.bool_], resolution: int | None
) -> None:
    shorter = min(mask.shape)
    if resolution is None or shorter <= resolution:
        return
    area = mask.sum() * (resolution / shorter) ** 2
    if area < 1:
        raise UserError(
            f"{one.mask}: the defect's {mask.sum()} pixels are {area:.2g} of one at resolution "
            f"{resolution}; keep more pixels with --resolution, or remove the image"
        )


def _clashes(images: Sequence[LabelledImage]) -> dict[str, str]:
    """What to say of each key that is another one's on a disk that ignores case."""
    alike: dict[str, list[LabelledImage]] = {}
    for one in images:
        folded = unicodedata.normalize("NFC", one.key).casefold()
        alike.setdefault(folded, []).append(one)
    return {
        one.key: f"{one.image}: its name and {other.image}'s differ by case or accents' coding "
        "alone, so they become one file where shards are unpacked; rename one"
        for several in alike.values()
        if len(several) > 1
        for one, other in zip(several, several[1:] + several[:1], strict=True)
    }
