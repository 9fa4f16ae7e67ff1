"""What a detector misses: defects it does not find, and what it takes for one.

Anomaly maps are of images that the detector was not trained on. A threshold gives each image
regions; compared with its mask they are

    missed        a part of the mask that hardly any of the regions covers
    false alarm   a region on a good image
    suspect       a strong region outside the mask of a defective image: perhaps not labelled
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from acontrol.evaluation.metrics import Counts, precision_recall

Kind = Literal["missed", "found", "false alarm", "suspect"]
Box = tuple[int, int, int, int]  # Left, top, right, bottom.

FOUND = 0.1  # Least share of a defect's pixels in regions for it to be found.
_SPECK = 0.01  # Of the largest part of a mask: smaller ones are slips of the pen, no defects.
_LEVELS = 2**16  # Of a map.
_RING = 5  # Pixels around a defect that its contrast is measured against.


@dataclass(frozen=True)
class Held:
    """An image that a detector was not trained on, and what the detector says of it.

    Attributes:
        name: CATEGORY/PATH, as a split file names it.
        defect: Its defect, or "good".
        fold: The fold that holds it out; 0 for maps of another detector.
        image: Pixels, (height, width, 3).
        mask: True on the defect.
        map: How defective a pixel looks, in [0, 1].
    """

    name: str
    defect: str
    fold: int
    image: UInt8[npt.NDArray[np.uint8], "height width 3"]
    mask: Bool[npt.NDArray[np.bool_], "height width"]
    map: Float[npt.NDArray[np.float32], "height width"]


@dataclass(frozen=True)
class Region:
    """A defect, found or missed, or what the detector took for one.

    Attributes:
        kind: What it is.
        name: Its image.
        defect: The image's defect, or "good".
        fold: The fold that holds the image out.
        number: Of the mask's parts, from 1; 0 for regions outside it.
        box: Around it, in pixels.
        area: In pixels.
        contrast: Mean grey level inside minus that of the pixels around it, in [-255, 255].
        covered: Share of it at or above the threshold.
        response: Highest value of the map in it.
    """

    kind: Kind
    name: str
    defect: str
    fold: int
    number: int
    box: Box
    area: int
    contrast: float
    covered: float
    response: float

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Region":
        """From JSON."""
        return cls(**{**record, "box": tuple(record["box"])})


Read = Callable[[], Iterator[Held]]  # Anew from the first image at each call.


def best_threshold(read: Read) -> float:
    """The level whose regions have the highest pixel F1 over all images."""
    counts = np.zeros((2, _LEVELS + 1))
    for one in read():
        level = (one.map * _LEVELS).round().astype(np.int64)
        for row, where in zip(counts, (one.mask, ~one.mask), strict=True):
            row += np.bincount(level[where], minlength=_LEVELS + 1)
    falling = np.linspace(1, 0, _LEVELS + 1)
    positives, negatives = np.cumsum(counts[:, ::-1], axis=1)
    precision, recall = precision_recall(Counts(falling, positives, negatives))
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    return float(falling[int(f1.argmax())] - 0.5 / _LEVELS)


def regions_of(read: Read, threshold: float) -> list[Region]:
    """Every region of every image: the defects first, then what is outside them.

    Regions outside a mask count from half the area of the smallest defect, so that specks are
    none; those of defective images from the median response of the defects that were found.
    """
    defects: list[Region] = []
    outside: list[Region] = []
    for one in read():
        defects += _parts(one, one.mask, threshold)
        around = ndimage.binary_dilation(one.mask, iterations=_RING)
        outside += _parts(one, (one.map >= threshold) & ~around, threshold, outside=True)
    least = min((region.area for region in defects), default=2) / 2
    responses = [region.response for region in defects if region.kind == "found"]
    strong = float(np.median(responses)) if responses else float("inf")
    return defects + [
        region
        for region in outside
        if region.area >= least and (region.kind != "suspect" or region.response >= strong)
    ]


def part_of(mask: npt.NDArray[np.bool_], number: int) -> npt.NDArray[np.bool_]:
    """The part of a mask with this number."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return np.asarray(labels == number)


def _parts(
    one: Held, where: npt.NDArray[np.bool_], threshold: float, *, outside: bool = False
) -> list[Region]:
    labels, _ = ndimage.label(where, np.ones((3, 3)))
    least = 0.0 if outside else _SPECK * np.bincount(labels[labels > 0], minlength=1).max()
    grey = one.image.mean(axis=-1)
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = (slice(max(0, own.start - _RING), own.stop + _RING) for own in place)
        inside = labels[rows, columns] == number
        if inside.sum() < least:
            continue
        ring = ndimage.binary_dilation(inside, iterations=_RING) & ~inside
        values, levels = one.map[rows, columns][inside], grey[rows, columns]
        contrast = levels[inside].mean() - levels[ring].mean() if ring.any() else 0.0
        covered = float((values >= threshold).mean())
        kind: Kind = "found" if covered >= FOUND else "missed"
        if outside:
            kind = "false alarm" if one.defect == "good" else "suspect"
        found.append(
            Region(
                kind,
                one.name,
                one.defect,
                one.fold,
                0 if outside else number,
                (place[1].start, place[0].start, place[1].stop, place[0].stop),
                int(inside.sum()),
                round(float(contrast), 3),
                round(covered, 4),
                round(float(values.max()), 6),
            )
        )
    return found
