"""Cross-validation within the training part: choices are made without the test images.

Folds are of whole pieces: photographs of one piece are held out together.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from acontrol.data.mvtec import MvtecFolder
from acontrol.data.pieces import GOOD, Labels, find_pieces, training_images
from acontrol.data.split import Split
from acontrol.errors import UserError
from acontrol.messages import print_note
from acontrol.seeding import derive_seed


def folds_of(
    real: MvtecFolder, categories: Sequence[str], number: int, groups: Path | None = None
) -> list[Split]:
    """A split of the data set for each fold; the test images are on no training side.

    Args:
        real: The data, with its own split.
        categories: Categories to divide.
        number: Number of folds.
        groups: CSV of image and group, by which images belong together; by default pieces
            told apart by texture.

    Raises:
        UserError: If an image is bad or not in ``groups``, or a fold would lack what it needs.
    """
    named = None if groups is None else read_groups(groups)
    held_out: list[set[str]] = [set() for _ in range(number)]
    training = []
    for category in categories:
        files = [(file, GOOD) for file in real.normals(category)]
        files += [(row.image, row.defect) for row in training_images(real, category)]
        names = [real.name_of(category, file) for file, _ in files]
        defects = [defect for _, defect in files]
        if named is None:
            found = find_pieces([file for file, _ in files], defects.count(GOOD))
            if not found.apart:
                print_note(
                    f"textures of {category}'s good images look alike, so only equal images "
                    "are held out together; --groups CSV says which belong together"
                )
            labels = found.labels
        else:
            labels = labels_of(names, named, groups)
        chosen = assigned(labels, defects, number, derive_seed("folds", category))
        _check(category, defects, chosen, number)
        training += names
        for name, fold in zip(names, chosen.tolist(), strict=True):
            held_out[fold].add(name)
    return [
        Split(
            train=tuple(name for name in training if name not in own), test=tuple(sorted(own))
        )
        for own in held_out
    ]


def assigned(labels: Labels, defects: Sequence[str], number: int, seed: int) -> Labels:
    """The fold of each image: groups in turn, large ones first, to where most is lacking."""
    kinds = sorted({*defects})
    counts = np.zeros((labels.max(initial=-1) + 1, len(kinds)))
    columns = np.array([kinds.index(defect) for defect in defects], np.int64)
    np.add.at(counts, (labels, columns), 1)
    target = np.maximum(counts.sum(axis=0) / number, 1)
    order = np.random.default_rng(seed).permutation(len(counts))
    # Defects are few: groups that have some come first.
    rare = (counts / target).sum(axis=1)[order]
    held = np.zeros((number, len(kinds)))
    fold = np.zeros(len(counts), np.int64)
    for group in order[np.argsort(-rare, kind="stable")]:
        before, after = held / target, (held + counts[group]) / target
        fold[group] = int(((after**2).sum(axis=1) - (before**2).sum(axis=1)).argmin())
        held[fold[group]] += counts[group]
    return fold[labels]


def read_groups(file: Path) -> dict[str, str]:
    """Groups by CATEGORY/PATH of an image, the names of a split file.

    Raises:
        UserError: If the file is missing or a row has not two columns.
    """
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise UserError(f"{file}: line {number} is not IMAGE,GROUP: {','.join(row)[:60]}")
    return {name.strip(): group.strip() for name, group in rows}


def labels_of(names: Sequence[str], named: Mapping[str, str], file: Path | None) -> Labels:
    """Number of the group of each image.

    Raises:
        UserError: If one has none.
    """
    missing = [name for name in names if name not in named]
    if missing:
        raise UserError(
            f"{file}: names no group of {missing[0]} (and {len(missing) - 1} more): add a line "
            "IMAGE,GROUP for each of these images"
        )
    groups = sorted({named[name] for name in names})
    return np.array([groups.index(named[name]) for name in names], np.int64)


def _check(category: str, defects: Sequence[str], chosen: Labels, number: int) -> None:
    """Every fold tests good and defective images and leaves some of each defect to train."""
    total = Counter(defects)
    for fold in range(number):
        own = Counter(
            defect for defect, n in zip(defects, chosen.tolist(), strict=True) if n == fold
        )
        problem = ""
        if not own[GOOD] or own[GOOD] == total[GOOD]:
            problem = f"{own[GOOD]} of {total[GOOD]} good images"
        if own.total() == own[GOOD]:
            problem = "no image of a defect"
        for defect in sorted({*total} - {GOOD}):
            if own[defect] == total[defect]:
                problem = f"all {total[defect]} training images of {defect}"
        if problem:
            raise UserError(
                f"with {number} folds one of {category} would hold out {problem}; ask for "
                "other folds, or give more training images"
            )
