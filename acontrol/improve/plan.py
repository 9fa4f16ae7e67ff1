"""What a round draws: a request for each image, as ``acontrol generate --requests`` takes it.

A drawing shows a training defect, its reference, with that defect's outline at about its place
on a good image. Both are held out by the same fold, so that detectors of this fold, which are
tested on them, never train on the drawing.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.images import encode_png, image_size, shrink_mask
from acontrol.improve.misses import Region, part_of
from acontrol.runs import storage
from acontrol.seeding import derive_seed

_MOVED = 0.25  # Of the defect's sides, at most, when it is placed on another image.

MaskOf = Callable[[str], npt.NDArray[np.bool_]]  # By an image's name.


@dataclass(frozen=True)
class Wanted:
    """An image to draw.

    Attributes:
        region: The defect it is to show.
        normal: Name of the good image.
        seed: Of the drawing; no two of a plan are equal.
    """

    region: Region
    normal: str
    seed: int

    @property
    def category(self) -> str:
        """The product."""
        return self.region.name.split("/")[0]


def of_misses(
    regions: Sequence[Region], good: Mapping[int, Sequence[str]], count: int, seed: int
) -> list[Wanted]:
    """Draw what was missed, the least covered first, on what was falsely found.

    Folds take turns, so that each one's detectors have drawings of the others' defects; one
    that missed nothing draws the third of its defects that is covered least.

    Args:
        regions: All of a category.
        good: Names of the good images of each fold.
        count: How many to draw; none if nothing was missed.
        seed: The same seed gives the same plan.
    """
    if all(region.kind != "missed" for region in regions):
        return []
    queues = []
    for fold in good:
        own = [r for r in regions if r.fold == fold and r.kind in ("missed", "found")]
        own.sort(key=lambda region: (region.covered, region.response, region.name))
        missed = [region for region in own if region.kind == "missed"]
        queues.append(missed or own[: -(-len(own) // 3)])
    queues = [queue for queue in queues if queue]
    cycles = [itertools.cycle(queue) for queue in queues]
    defects = [next(cycles[number % len(cycles)]) for number in range(count)]
    alarms = {
        fold: [
            *dict.fromkeys(
                r.name for r in regions if r.kind == "false alarm" and r.fold == fold
            )
        ]
        for fold in good
    }
    return _wanted(defects, good, alarms, count, seed)


def uniform(
    regions: Sequence[Region], good: Mapping[int, Sequence[str]], count: int, seed: int
) -> list[Wanted]:
    """Draw all defects, equally often, in random order on random good images."""
    defects = [region for region in regions if region.kind in ("missed", "found")]
    order = np.random.default_rng(derive_seed("uniform", seed)).permutation(len(defects))
    kinds = sorted({region.defect for region in defects})
    queues = [[defects[n] for n in order if defects[n].defect == kind] for kind in kinds]
    turns = max(map(len, queues), default=0)
    alike = [queue[turn % len(queue)] for turn in range(turns) for queue in queues]
    return _wanted(alike, good, {}, count, seed)


def _wanted(
    defects: Sequence[Region],
    good: Mapping[int, Sequence[str]],
    first: Mapping[int, Sequence[str]],
    count: int,
    seed: int,
) -> list[Wanted]:
    if not defects:
        return []
    queues: dict[int, list[str]] = {}
    wanted = []
    for number in range(count):
        region = defects[number % len(defects)]
        queue = queues.setdefault(region.fold, [])
        if not queue:
            rng = np.random.default_rng(derive_seed("good", seed, region.fold, number))
            rest = [
                name for name in good[region.fold] if name not in first.get(region.fold, ())
            ]
            queue += [
                *first.get(region.fold, ()),
                *(rest[n] for n in rng.permutation(len(rest))),
            ]
        wanted.append(Wanted(region, queue.pop(0), derive_seed("drawing", seed, number)))
    return wanted


def write(
    wanted: Sequence[Wanted], folder: Path, root: Callable[[str], Path], mask_of: MaskOf
) -> Path:
    """Write a plan's masks and requests.

    Args:
        wanted: The plan.
        folder: Where to.
        root: The file of an image by its name.
        mask_of: The mask of an image by its name.

    Returns:
        The requests file, written last.
    """
    lines = []
    for number, one in enumerate(wanted):
        normal = root(one.normal)
        rng = np.random.default_rng(derive_seed("place", one.seed))
        outline = part_of(mask_of(one.region.name), one.region.number)
        placed = _placed(outline, image_size(normal), rng)
        mask = folder / "masks" / f"{number:04d}.png"
        storage.write(mask, encode_png(Image.fromarray(placed).convert("L")), durable=False)
        lines.append(_request(one, normal, mask.relative_to(folder)))
    file = folder / "requests.jsonl"
    storage.write(file, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    return file


def _request(one: Wanted, normal: Path, mask: Path) -> dict[str, Any]:
    reference = Path(one.region.name)
    return {
        "category": one.category,
        "defect": one.region.defect,
        "normal": str(normal),
        "mask": mask.as_posix(),
        "reference": f"{one.category}/{one.region.defect}/{reference.stem}",
        "seed": one.seed,
    }


def _placed(
    outline: npt.NDArray[np.bool_], size: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """An outline on an image of another size, a little moved, whole within it."""
    scaled = np.asarray(shrink_mask(Image.fromarray(outline), size), dtype=bool)
    rows, columns = np.flatnonzero(scaled.any(axis=1)), np.flatnonzero(scaled.any(axis=0))
    shifts = []
    for places, length in ((rows, scaled.shape[0]), (columns, scaled.shape[1])):
        most = round(_MOVED * (places[-1] - places[0] + 1))
        shift = int(rng.integers(-most, most + 1))
        shifts.append(int(np.clip(shift, -places[0], length - 1 - places[-1])))
    return np.roll(scaled, shifts, axis=(0, 1))
