"""Masks from a defect's training masks: moved, turned, scaled, flipped and bent.

How much is read from the training masks themselves: areas stay within theirs, directions
within their spread. A defect that touches the image's edge, as a chipped rim does, keeps
touching it; its mask moves along that edge instead of anywhere.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from acontrol.masks.shape import Mask, Shape, Side, cut_out, sides_of
from acontrol.masks.statistics import elongation, measure, spread_of_angles

_ENOUGH = 5  # Masks from which statistics are taken; from fewer, the defaults below.
_TURN = np.radians(20)  # As AnomalyDiffusion turns its training masks.
_AREA = 0.2  # Standard deviation of the logarithm of the area.
_BEND = 0.04  # Standard deviation of the bend, as a share of the shape's diagonal.
_SLACK = 1.25  # Elongation may leave its training range by this factor.

Field = npt.NDArray[np.float64]


class RealMasks:
    """Makes shapes of one defect from its training masks."""

    def __init__(self, masks: Mapping[str, Mask]):
        """Measure the training masks.

        Args:
            masks: By name; each is as large as its image, which may differ, and not empty.

        Raises:
            ValueError: If there is none, or one is empty.
        """
        if not masks:
            raise ValueError("need at least one mask")
        self.names = sorted(masks)
        self.masks = [masks[name] for name in self.names]
        self.sides = [sides_of(mask) for mask in self.masks]
        self._fields: list[Field | None] = [None] * len(self.masks)
        found = [measure(mask) for mask in self.masks]
        areas = [one.area for one in found]
        lengths = [one.elongation for one in found]
        few = len(found) < _ENOUGH
        self.area = (min(areas) / _SLACK, max(areas) * _SLACK) if few else _ends(areas)
        self.elongation = (min(lengths) / _SLACK, max(lengths) * _SLACK)
        # Silverman's rule: a new area lies between its training mask's and its neighbours'.
        width = 0.9 * float(np.std(np.log(areas))) * len(areas) ** -0.2
        self.area_spread = _AREA if few else min(width, _AREA)
        self.turn = _TURN if few else spread_of_angles(found)
        seen = frozenset().union(*self.sides)
        self.seen_sides: frozenset[Side] | None = None if few else seen

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Change one training mask, as `acontrol.masks.shape.MaskSource` says."""
        which = int(rng.integers(len(self.masks)))
        grown = rng.normal(0, self.area_spread)
        share = float(np.clip(self.masks[which].mean() * np.exp(grown), *self.area))
        pixels = max(min_pixels, round(share * size[0] * size[1]))
        if self.sides[which]:
            return self._at_edge(which, size, pixels, rng)
        return self._anywhere(which, size, pixels, rng)

    def _anywhere(
        self, which: int, size: tuple[int, int], pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Scale to the pixels wanted, turn, flip and bend."""
        name = self.names[which]
        field = self._field(which)
        scale = float(np.sqrt(pixels / cut_out(self.masks[which]).pixels.sum()))
        longest = float(np.hypot(*field.shape)) * scale
        side = int(np.ceil(longest * 1.2)) + 4
        if longest > 2 * max(size):
            return f"{name} would be larger than the image"
        turn = rng.normal(0, self.turn)
        flip = 1.0
        if rng.random() < 0.5:
            # A flip alone would leave the directions seen in training: the long axis at an
            # angle a would lie at -a, so the shape is turned by 2a to lie as before.
            flip = -1.0
            turn += 2 * measure(self.masks[which]).angle
        grid = np.indices((side, side), dtype=np.float64) - (side - 1) / 2
        y, x = grid + _bend((side, side), _BEND * longest, rng)
        cos, sin = np.cos(turn), np.sin(turn)
        row, column = (cos * y - sin * x) / scale, flip * (sin * y + cos * x) / scale
        rows, columns = ((length - 1) / 2 for length in field.shape)
        made = ndimage.map_coordinates(
            field, (row + rows, column + columns), order=1, mode="nearest"
        )
        shape = cut_out(_largest(made, pixels), name)
        if shape.pixels.shape[0] > size[0] or shape.pixels.shape[1] > size[1]:
            return f"{name} would be larger than the image"
        return self._checked(Shape(shape.pixels, None, name))

    def _at_edge(
        self, which: int, size: tuple[int, int], pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Stretch the whole frame to the image, flip, bend, and move along the edge."""
        mask = self.masks[which]
        field = np.asarray(_signed_distance(mask))
        flips = [(a, b) for a in (False, True) for b in (False, True) if self._may(which, a, b)]
        upside, across = flips[int(rng.integers(len(flips)))]
        grid = np.indices(size, dtype=np.float64)
        grid += _bend(size, _BEND * float(np.sqrt(pixels)), rng)
        zoom = [(old - 1) / max(1, new - 1) for old, new in zip(mask.shape, size, strict=True)]
        row, column = grid[0] * zoom[0], grid[1] * zoom[1]
        row = mask.shape[0] - 1 - row if upside else row
        column = mask.shape[1] - 1 - column if across else column
        made = ndimage.map_coordinates(field, (row, column), order=1, mode="nearest")
        shape = cut_out(_largest(made, min(pixels, made.size)), self.names[which])
        sides = _flipped(self.sides[which], upside, across)
        assert shape.at is not None
        at = list(shape.at)
        # Along an edge there is room to both sides; across it the mask stays where it is.
        for axis, ends in ((0, {"top", "bottom"}), (1, {"left", "right"})):
            if not sides & ends:
                room = size[axis] - shape.pixels.shape[axis]
                at[axis] = int(rng.integers(1, room)) if room > 1 else at[axis]
        return self._checked(Shape(shape.pixels, (at[0], at[1]), shape.origin))

    def _checked(self, shape: Shape) -> Shape | str:
        low, high = self.elongation
        if low <= elongation(shape.pixels) <= high:
            return shape
        return f"{shape.origin} would be longer or rounder than training masks"

    def _may(self, which: int, upside: bool, across: bool) -> bool:
        """Whether the flipped mask touches only edges that training masks touch."""
        after = _flipped(self.sides[which], upside, across)
        return self.seen_sides is None or after <= self.seen_sides

    def _field(self, which: int) -> Field:
        """The signed distance of a mask cut out with a margin, kept once computed."""
        found = self._fields[which]
        if found is None:
            pixels = cut_out(self.masks[which]).pixels
            found = _signed_distance(np.pad(pixels, 1 + max(pixels.shape) // 8))
            self._fields[which] = found
        return found


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def _signed_distance(mask: Mask) -> Field:
    """Pixels to the mask's border, positive inside. It keeps thin lines when it is resized."""
    if mask.all():
        return np.ones(mask.shape)
    inside = ndimage.distance_transform_edt(mask)
    return np.asarray(inside - ndimage.distance_transform_edt(~mask), dtype=np.float64)


def _largest(field: Field, count: int) -> Mask:
    """Exactly ``count`` pixels: those with the largest values."""
    flat = field.ravel()
    chosen = np.argsort(-flat, kind="stable")[:count]
    mask = np.zeros(flat.shape, dtype=bool)
    mask[chosen] = True
    return mask.reshape(field.shape)


def _bend(size: tuple[int, int], pixels: float, rng: np.random.Generator) -> Field:
    """A smooth random displacement, (2, height, width), of ``pixels`` on average."""
    coarse = rng.normal(0, pixels, (2, 4, 4))
    zoom = (1, size[0] / 4, size[1] / 4)
    return np.asarray(ndimage.zoom(coarse, zoom, order=3, grid_mode=True, mode="nearest"))


def _flipped(sides: frozenset[Side], upside: bool, across: bool) -> frozenset[Side]:
    other: dict[Side, Side] = {}
    if upside:
        other |= {"top": "bottom", "bottom": "top"}
    if across:
        other |= {"left": "right", "right": "left"}
    return frozenset(other.get(side, side) for side in sides)
