"""Warp a defect into a mask: the similarity that makes its own mask fit best.

Scale, rotation and translation, as what copies a photograph may change; a mirror would turn its
light around.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from acontrol.data.crops import bounds, grown, label_components
from acontrol.masks.shape import Mask
from acontrol.pipelines.compositing import Pixels

_TURN = 0.1  # Overlap that half a turn must be worth.
_COMPONENTS = 6  # Most of each mask that are fitted with care.
_POINTS = 2000  # Most pixels of a mask that a fit looks at.
_ANGLES = sorted((15.0 * step for step in range(-11, 13)), key=abs)  # Small turns win ties.
_SCALES = (1.0, 1.12, 0.89, 1.26, 0.79)  # Times the square root of the areas' ratio.
_CLOSER = tuple(product((0.0, -3.75, 3.75, -7.5, 7.5), (1.0, 1.06, 0.94)))

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """Where a reference's pixels go.

    Attributes:
        scale: Enlargement.
        angle: Of the turn, in degrees.
        source: Row and column of the reference's centre of turn.
        target: Where that point goes.
    """

    scale: float
    angle: float
    source: tuple[float, float]
    target: tuple[float, float]

    def sources(self, targets: Points) -> Points:
        """Positions in the reference, (n, 2), of positions in the image, (n, 2)."""
        if self.angle == 0 and self.scale == 1:  # Exact: no rounding of a sine.
            return targets + (np.array(self.source) - self.target)
        turn = math.radians(self.angle)
        back = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        return (targets - self.target) @ back.T / self.scale + self.source


@dataclass(frozen=True)
class Fit:
    """A part of a mask, and what fits into it.

    Attributes:
        mask: (H, W), that part.
        reference: (h, w), the part of the reference's mask that goes there.
        similarity: How.
        overlap: Intersection over union of the two, in [0, 1].
    """

    mask: Mask
    reference: Mask
    similarity: Similarity
    overlap: float


def fits(reference: Mask, mask: Mask) -> list[Fit]:
    """The similarities under which a reference's mask overlaps most with a mask.

    The two as wholes, or if that is better each component of the mask with the component of
    the reference that fits it best. Masks of one shape give a translation by whole pixels.

    Args:
        reference: (h, w), not empty.
        mask: (H, W), not empty.
    """
    whole = _fit(reference, mask)
    sources, targets = _components(reference), _components(mask)
    if whole.overlap == 1 or len(sources) == len(targets) == 1:
        return [whole]
    sources = sources[:_COMPONENTS]
    parts = [
        max((_fit(source, target) for source in sources), key=lambda fit: fit.overlap)
        if number < _COMPONENTS
        else _fit(sources[0], target, search=False)  # Specks: any will do.
        for number, target in enumerate(targets)
    ]
    mean = sum(part.overlap * int(part.mask.sum()) for part in parts) / int(mask.sum())
    return parts if mean > whole.overlap else [whole]


def _components(mask: Mask) -> list[Mask]:
    """Connected components, the largest first."""
    labels, areas = label_components(mask)
    return [labels == number + 1 for number in np.argsort(-areas, kind="stable")]


def _fit(reference: Mask, mask: Mask, *, search: bool = True) -> Fit:
    """Fit two masks by their centres; without a search only by their areas."""
    points = np.argwhere(mask).astype(np.float64)
    target, source = points.mean(axis=0), np.argwhere(reference).mean(axis=0)
    points = points[:: math.ceil(len(points) / _POINTS)]
    ratio = math.sqrt(mask.sum() / reference.sum())

    def fitted(scale: float, angle: float) -> Fit:
        similarity = Similarity(
            scale,
            angle,
            (float(source[0]), float(source[1])),
            (float(target[0]), float(target[1])),
        )
        area = (scale / ratio) ** 2  # Of the warped defect, in areas of the mask.
        covered = float(_inside(reference, similarity.sources(points)).mean())
        both = min(covered, area)  # Of a thin defect more pixels are nearest than it has.
        return Fit(mask, reference, similarity, both / (1 + area - both))

    if not search:
        return fitted(ratio, 0.0)
    best = max(
        (fitted(ratio * scale, angle) for angle in _ANGLES for scale in _SCALES), key=_worth
    ).similarity
    return max(
        (fitted(best.scale * scale, best.angle + turn) for turn, scale in _CLOSER), key=_worth
    )


def _worth(fit: Fit) -> float:
    """The overlap, less for a turn: it turns light and grain, too."""
    return fit.overlap - _TURN * abs(fit.similarity.angle) / 180


def warped(image: Pixels, fit: Fit) -> tuple[npt.NDArray[np.float64], Mask]:
    """A reference's pixels inside a part of a mask.

    Args:
        image: (h, w, 3), the reference.
        fit: Where they go.

    Returns:
        (n, 3) colours in [0, 255] of the part's pixels, in their order, and (H, W): the pixels
        of the part that lie on the defect.
    """
    mask, reference, similarity = fit.mask, fit.reference, fit.similarity
    sources = similarity.sources(np.argwhere(mask).astype(np.float64))
    on_defect = np.zeros_like(mask)
    on_defect[mask] = _inside(reference, sources)
    # The part that is read, so that a photograph is not blurred as a whole.
    rows, columns = grown(bounds(reference), 8 + math.ceil(4 / similarity.scale), image.shape)
    part = image[rows, columns].astype(np.float64)
    if similarity.scale < 1:  # As scikit-image's anti-aliasing.
        sigma = (1 / similarity.scale - 1) / 2
        part = ndimage.gaussian_filter(part, (sigma, sigma, 0))
    at = (sources - (rows.start, columns.start)).T
    colours = [
        ndimage.map_coordinates(part[..., channel], at, order=1, mode="nearest")
        for channel in range(3)
    ]
    return np.stack(colours, axis=1), on_defect


def _inside(mask: Mask, positions: Points) -> npt.NDArray[np.bool_]:
    """Whether each position, (n, 2), is nearest to a pixel of a mask."""
    rows, columns = np.floor(positions + 0.5).astype(np.int64).T
    within = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    return within & mask[np.where(within, rows, 0), np.where(within, columns, 0)]
