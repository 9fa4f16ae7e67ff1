"""How strong are made defects beside photographed ones?

    python -m benchmarks.contrast ROOT [--split-file FILE] --set NAME=FOLDER ...

In grey levels, means over images: how much brighter the mask is than the RING pixels around it,
how far its pixels are from their median, the same of the ring itself, and how many times as
steep its gradients are as theirs. A drawing of a crack that cannot be seen has the ring's
figures; one that no camera would take has many times the photographs'. Of the training
photographs alone: nothing here reads a test image.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from acontrol.data.images import read_image
from acontrol.data.mvtec import LabelledImage, MvtecFolder, open_folder

RING = 4  # Pixels around a mask, less the one at its edge.
HEAD = ("brighter by", "from the ring's median", "the ring from it", "gradients, times")


def contrast(
    image: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]
) -> tuple[float, float, float, float] | None:
    """The four figures of HEAD, of a grey image; None if nothing lies around its mask."""
    edge = ndimage.binary_dilation(mask)
    ring = ndimage.binary_dilation(mask, iterations=RING) & ~edge
    if not ring.any():
        return None
    inside, around = image[mask], image[ring]
    middle = np.median(around)
    slope = np.hypot(*np.gradient(image))
    return (
        float(inside.mean() - around.mean()),
        float(np.abs(inside - middle).mean()),
        float(np.abs(around - middle).mean()),
        float(slope[mask].mean() / max(float(slope[ring].mean()), 1e-9)),
    )


def rows_of(folder: MvtecFolder, part: Literal["train", "all"]) -> list[LabelledImage]:
    """A folder's defective images, of all categories."""
    return [row for category in folder.categories for row in folder.labelled(part, category)]


def by_defect(rows: Iterable[LabelledImage]) -> dict[str, list[tuple[float, ...]]]:
    """The figures of each defect's images."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        grey = read_image(row.image).mean(axis=2)
        figures = contrast(grey, row.read_mask())
        if figures is not None:
            found.setdefault(row.defect, []).append(figures)
    return found


def main() -> None:
    """Print a table: a row for each defect and set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--split-file", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=FOLDER")
    options = parser.parse_args()
    photographed = open_folder(options.root, split_file=options.split_file)
    sets = {"photographs": rows_of(photographed, "train")}
    for name, _, place in (text.partition("=") for text in options.set):
        sets[name] = rows_of(open_folder(Path(place)), "all")
    print(f"| defect | of | images | {' | '.join(HEAD)} |\n|{' --- |' * (3 + len(HEAD))}")
    table = {
        (defect, order): f"| {defect} | {name} | {len(found)} | "
        + " | ".join(f"{value:.1f}" for value in np.mean(found, axis=0))
        + " |"
        for order, (name, rows) in enumerate(sets.items())
        for defect, found in by_defect(rows).items()
    }
    print("\n".join(table[key] for key in sorted(table)))


if __name__ == "__main__":
    main()
