"""Sets of kept drawings, in MVTec AD's layout, for the detectors of each fold."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acontrol.evaluation.leaks import JOB

# Folder of drawings, round, and what was decided on the drawing.
Kept = tuple[Path, int, Mapping[str, Any]]


def make_set(
    place: Path, kept: Iterable[Kept], folds: Sequence[int], categories: Sequence[str]
) -> str | None:
    """Put drawings where detectors read them, all at once.

    A drawing whose reference a fold holds out is left out for that fold. Every part has the
    first drawings' job.json, which records the images behind them.

    Args:
        place: Folder to create: ``fold-2`` for that fold's detectors, ``all`` for the whole.
        kept: What to put there.
        folds: Numbers of the folds.
        categories: Each must have a drawing in every part, or nothing is written.

    Returns:
        A category and part that lack one, if there are such.
    """
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for drawn, round_, one in kept:
        parts = [f"fold-{fold}" for fold in folds if fold != one["fold"]]
        for part in (*parts, "all"):
            _link(drawn, one, partial / part, round_)
            if not (partial / part / JOB).exists():
                shutil.copyfile(drawn / JOB, partial / part / JOB)
    for category in categories:
        for part in (*(f"fold-{fold}" for fold in folds), "all"):
            if not (partial / part / category).exists():
                shutil.rmtree(partial, ignore_errors=True)
                return f"{category} ({part})"
    os.replace(partial, place)
    return None


def _link(drawn: Path, one: Mapping[str, Any], part: Path, round_: int) -> None:
    """A kept drawing and its mask as files of a set, named by round."""
    for file in (one["image"], one["mask"]):
        source = drawn / file
        target = part / Path(file).with_name(f"{round_}-{source.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # Another file system, or one without links.
            shutil.copyfile(source, target)
