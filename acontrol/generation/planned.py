"""One image to draw, with all that decides its pixels."""

from dataclasses import dataclass
from pathlib import Path

from acontrol.generation.settings import Sampling
from acontrol.masks.sampler import Kind, Place


@dataclass(frozen=True)
class Reference:
    """Whose defect is drawn.

    Attributes:
        image: The file.
        mask: Its mask's.
        phrase: The anomaly's words: T_a without its template.
        kind: Category and defect, where it is one of the data set's.
    """

    image: Path
    mask: Path
    phrase: str
    kind: Kind | None = None


@dataclass(frozen=True)
class Planned:
    """One image to draw.

    Attributes:
        name: Its place in the data set, without a suffix: (category, defect, number).
        normal: Image to draw on.
        reference: Whose defect is drawn.
        mask: Where it goes.
        prompt: Target text T_t.
        seed: Of its own noise.
        sampling: How it is drawn.
    """

    name: tuple[str, str, str]
    normal: Path
    reference: Reference
    mask: Place
    prompt: str
    seed: int
    sampling: Sampling
