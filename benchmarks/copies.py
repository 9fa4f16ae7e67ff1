"""Are drawn defects copies of training defects? The nearest training defect of each drawn one.

    python -m benchmarks.copies REAL DRAWN [--split-file S]

Squares of twice the defect, grey, at 32 px, each less its mean and of length 1: their inner
product is their correlation, the highest of the eight turned and mirrored ones. Prints
quantiles over drawn defects of the correlation with the nearest training defect, and for
comparison those over training defects with the nearest other one; and the nearest pairs, to be
looked at.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.mvtec import LabelledImage, open_folder
from benchmarks.blind import crop_of

SIDE = 32
QUANTILES = (0.05, 0.5, 0.95, 1.0)
SHOWN = 5

Rows = npt.NDArray[np.float32]


def squares(images: Sequence[LabelledImage]) -> Rows:
    """(image, pixel), each of mean 0 and length 1; of a flat square 0."""
    rows = []
    for image in images:
        small = crop_of(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.float32)
        pixels = pixels - pixels.mean()
        rows.append(pixels / max(float(np.linalg.norm(pixels)), 1e-6))
    return np.stack(rows)


def turned(rows: Rows) -> list[Rows]:
    """The eight turned and mirrored ones."""
    return [
        np.rot90(mirrored, turns, axes=(1, 2)).reshape(len(rows), -1)
        for mirrored in (rows, rows[:, :, ::-1])
        for turns in range(4)
    ]


def correlations(first: Rows, second: Rows) -> Rows:
    """(first, second), the highest of the eight."""
    flat = first.reshape(len(first), -1)
    return np.max([flat @ other.T for other in turned(second)], axis=0)


def main() -> None:
    """Print the table and the nearest pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path)
    parser.add_argument("drawn", type=Path)
    parser.add_argument("--split-file", type=Path)
    arguments = parser.parse_args()
    real = open_folder(arguments.real, split_file=arguments.split_file).labelled("train")
    drawn = open_folder(arguments.drawn).labelled("all")
    training = squares(real)
    among = correlations(training, training)
    np.fill_diagonal(among, -1)
    near = correlations(squares(drawn), training)
    head = " | ".join(f"{share:.0%}" for share in QUANTILES)
    print(f"| nearest training defect of | number | {head} | above .9 |")
    print("| --- " * (3 + len(QUANTILES)) + "|")
    for name, table in (("drawn defects", near), ("training defects, another", among)):
        best = table.max(axis=1)
        values = " | ".join(f"{value:.2f}" for value in np.quantile(best, QUANTILES))
        print(f"| {name} | {len(best)} | {values} | {int((best > 0.9).sum())} |")
    for index in np.argsort(-near.max(axis=1))[:SHOWN]:
        nearest = real[int(near[index].argmax())]
        print(f"{near[index].max():.3f} {drawn[index].image} {nearest.image}")


if __name__ == "__main__":
    main()
