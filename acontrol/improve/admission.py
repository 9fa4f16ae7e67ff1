"""Which drawings a round keeps: those that can be found, and are not found trivially.

    trivial    at least 90 % of the label is already found: nothing is to be learnt from it
    invisible  less than 25 % of the label differs from the good image: no detector could find
               it, and it would teach that good surfaces are defects

The detector is the one of the fold that holds the drawing's reference out. That it finds
nothing of a drawing is no reason to drop it: such drawings are what was asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

TRIVIAL, INVISIBLE = 0.9, 0.25

Verdict = Literal["kept", "trivial", "invisible"]


@dataclass(frozen=True)
class Judged:
    """A drawing and what becomes of it.

    Attributes:
        image: Its file, relative to the folder of drawings.
        covered: Share of its label at or above the threshold.
        verdict: Whether it is kept, or why not.
    """

    image: str
    covered: float
    verdict: Verdict


def judged(
    image: str,
    scores: Float[npt.NDArray[np.float32], "height width"],
    mask: Bool[npt.NDArray[np.bool_], "height width"],
    threshold: float,
    changed: float,
) -> Judged:
    """Judge a drawing by its anomaly map, and by the share of its label that changed."""
    covered = float((scores[mask] >= threshold).mean())
    verdict: Verdict = "kept"
    if changed < INVISIBLE:
        verdict = "invisible"
    elif covered >= TRIVIAL:
        verdict = "trivial"
    return Judged(image, round(covered, 4), verdict)


def as_many(lines: Sequence[Mapping[str, Any]], kept: Mapping[str, int]) -> list[str]:
    """Of a control's drawings the first of each defect, as many as the round kept.

    All of a defect's are chosen where the control has fewer.

    Args:
        lines: Its manifest.
        kept: Number of images that were kept by CATEGORY/DEFECT.
    """
    chosen: list[str] = []
    left = dict(kept)
    for line in lines:
        kind = f"{line['category']}/{line['defect']}"
        if left.get(kind, 0):
            left[kind] -= 1
            chosen.append(line["image"])
    return chosen
