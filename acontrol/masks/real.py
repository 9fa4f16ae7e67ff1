"""Masks from a defect's training masks: moved, rotated, scaled, flipped and bent.

The training masks themselves set the limits: areas stay within theirs, directions within
their spread. A mask that touches the image's edge, as a chipped rim does, keeps touching it
and moves along that edge only.
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from acontrol.masks.edge import Bend, Field, largest, signed_distance, stretched
from acontrol.masks.shape import Mask, PackedMask, Shape, Side, cut_out, sides_of
from acontrol.masks.statistics import ellipse, measure, spread_of_angles

_ENOUGH = 5  # Fewest masks for statistics; with fewer, the defaults below.
_TURN = np.radians(20)  # AnomalyDiffusion's.
_AREA = 0.2  # Standard deviation of the logarithm of the area.
_BEND = 0.04  # Standard deviation of the bend, as a share of the shape's diagonal.
# A bent line is about a dozen times as long as wide: past this, hardly any is like these masks.
_STRAIGHT = 40.0
_SLACK = 1.25  # Elongation may leave its training range by this factor.


class RealMasks:
    """Shapes of one defect, made from its training masks."""

    def __init__(self, masks: Mapping[str, Mask]):
        """Measure the training masks.

        Args:
            masks: By name; each is as large as its image, which may differ, and not empty.

        Raises:
            ValueError: If there are none, or one is empty.
        """
        if not masks:
            raise ValueError("need at least one mask")
        self.names = sorted(masks)
        self.masks, self.sides, geometries = [], [], []
        for name in self.names:
            mask = masks[name]
            self.masks.append(PackedMask.of(mask))
            self.sides.append(sides_of(mask))
            geometries.append(measure(mask))
        self._fields: list[Field | None] = [None] * len(self.masks)
        areas = self.shares = [geometry.area for geometry in geometries]
        self.angles = [geometry.angle for geometry in geometries]
        lengths = [geometry.elongation for geometry in geometries]
        few = len(geometries) < _ENOUGH
        slack = _SLACK if few else 1.0
        self.area = (min(areas) / slack, max(areas) * slack)
        self.elongation = (min(lengths) / _SLACK, max(lengths) * _SLACK)
        # Silverman's rule: a new area is between its training mask's and its neighbours'.
        width = 0.9 * float(np.std(np.log(areas))) * len(areas) ** -0.2
        self.area_spread = _AREA if few else min(width, _AREA)
        self.turn = _TURN if few else spread_of_angles(geometries)
        seen = frozenset().union(*self.sides)
        self.seen_sides: frozenset[Side] | None = None if few else seen
        self.straight = self.elongation[0] > _STRAIGHT

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Vary one training mask (`acontrol.masks.shape.MaskSource`)."""
        index = int(rng.integers(len(self.masks)))
        growth = np.exp(rng.normal(0, self.area_spread))
        share = float(np.clip(self.shares[index] * growth, *self.area))
        pixels = max(min_pixels, round(share * size[0] * size[1]))
        vary = self._at_edge if self.sides[index] else self._anywhere
        shape = vary(index, size, pixels, rng)
        if isinstance(shape, str):
            return shape
        low, high = self.elongation
        if low <= ellipse(shape.pixels)[0] <= high:
            return shape
        return f"{shape.origin} would be longer or rounder than training masks"

    def sample_gently(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """A training mask, moved, and as large as fits (`acontrol.masks.shape.GentleSource`).

        If that is too small, it is thickened and not lengthened, so that its limit of
        elongation no longer applies.
        """
        index = int(rng.integers(len(self.masks)))
        mask, name = self.masks[index].unpacked(), self.names[index]
        own = max(1, round(self.shares[index] * size[0] * size[1]))
        pixels = max(min_pixels, own)
        if self.sides[index]:
            return self._at_edge(index, size, pixels, rng, bend=0)
        cut = cut_out(mask).pixels
        room = min((whole - 2) / side for whole, side in zip(size, cut.shape, strict=True))
        scale = min(float(np.sqrt(own / mask.sum())), room)
        if scale <= 0:
            return f"{name} would be larger than the image"
        thicker = 2 + int(np.ceil(max(0, pixels - own) / (max(cut.shape) * scale)))
        field = self._field(index)
        sides = (int(np.ceil(side * scale)) + thicker for side in cut.shape)
        # As even or odd as the field: a line between two rows would be in both or neither.
        height, width = (
            side + (side - whole) % 2 for side, whole in zip(sides, field.shape, strict=True)
        )
        # A turn by 180 degrees keeps the direction.
        field = field[::-1, ::-1] if rng.random() < 0.5 else field
        rows, columns = (
            (np.arange(length) - (length - 1) / 2) / scale + (whole - 1) / 2
            for length, whole in zip((height, width), field.shape, strict=True)
        )
        places = np.meshgrid(rows, columns, indexing="ij")
        values = ndimage.map_coordinates(field, places, order=1, mode="nearest")
        shape = cut_out(largest(values, min(pixels, values.size))[0], name)
        if np.greater(shape.pixels.shape, size).any():
            return f"{name} would be larger than the image"
        return Shape(shape.pixels, None, name)

    def _anywhere(
        self, index: int, size: tuple[int, int], pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Scale to the number of pixels, rotate, flip and bend."""
        name = self.names[index]
        field = self._field(index)
        scale = float(np.sqrt(pixels / self.masks[index].unpacked().sum()))
        longest = float(np.hypot(*field.shape)) * scale
        side = int(np.ceil(longest * 1.2)) + 4
        if longest > 2 * max(size):
            return f"{name} would be larger than the image"
        turn = rng.normal(0, self.turn)
        flip = 1.0
        if rng.random() < 0.5:
            # A flip alone would leave the directions seen in training: it moves the long axis
            # from an angle a to -a, so the shape is also rotated by 2a.
            flip = -1.0
            turn += 2 * self.angles[index]
        grid = np.indices((side, side), dtype=np.float64) - (side - 1) / 2
        whole = slice(None)
        y, x = grid + Bend.of((side, side), _BEND * longest, rng).at(whole, whole)
        cos, sin = np.cos(turn), np.sin(turn)
        row, column = (cos * y - sin * x) / scale, flip * (sin * y + cos * x) / scale
        rows, columns = ((length - 1) / 2 for length in field.shape)
        values = ndimage.map_coordinates(
            field, (row + rows, column + columns), order=1, mode="nearest"
        )
        shape = cut_out(largest(values, pixels)[0], name)
        if np.greater(shape.pixels.shape, size).any():
            return f"{name} would be larger than the image"
        return Shape(shape.pixels, None, name)

    def _at_edge(
        self,
        index: int,
        size: tuple[int, int],
        pixels: int,
        rng: np.random.Generator,
        bend: float = _BEND,
    ) -> Shape:
        """Stretch the whole frame to the image, flip, bend, and move along the edge."""
        flips = [(a, b) for a in (False, True) for b in (False, True) if self._may(index, a, b)]
        upside, across = flips[int(rng.integers(len(flips)))]
        bent = Bend.of(size, bend * float(np.sqrt(pixels)), rng)
        count = min(pixels, size[0] * size[1])
        mask = self.masks[index].unpacked()
        part, (top, left) = stretched(mask, size, count, bent, (upside, across))
        shape = cut_out(part, self.names[index])
        sides = _flipped(self.sides[index], upside, across)
        assert shape.at is not None
        at = [shape.at[0] + top, shape.at[1] + left]
        # The mask moves along its edge, never away from it.
        for axis, ends in ((0, {"top", "bottom"}), (1, {"left", "right"})):
            if not sides & ends:
                room = size[axis] - shape.pixels.shape[axis]
                at[axis] = int(rng.integers(1, room)) if room > 1 else at[axis]
        return Shape(shape.pixels, (at[0], at[1]), shape.origin)

    def _may(self, index: int, upside: bool, across: bool) -> bool:
        """Whether the flipped mask touches only edges that training masks touch."""
        after = _flipped(self.sides[index], upside, across)
        return self.seen_sides is None or after <= self.seen_sides

    def _field(self, index: int) -> Field:
        """The signed distance of a mask cut out with a margin, cached."""
        field = self._fields[index]
        if field is None:
            pixels = cut_out(self.masks[index].unpacked()).pixels
            field = signed_distance(np.pad(pixels, 1 + max(pixels.shape) // 8))
            self._fields[index] = field
        return field


def _flipped(sides: frozenset[Side], upside: bool, across: bool) -> frozenset[Side]:
    other: dict[Side, Side] = {}
    if upside:
        other |= {"top": "bottom", "bottom": "top"}
    if across:
        other |= {"left": "right", "right": "left"}
    return frozenset(other.get(side, side) for side in sides)
