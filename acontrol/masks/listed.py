"""Masks that are used as they are: the user's own, and those of a trained model."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.images import shrink_mask
from acontrol.masks.shape import Mask, PackedMask, Shape, cut_out, sides_of

_SMOOTH = Image.Resampling.BICUBIC


class ListedMasks:
    """Image-sized masks from a list, resized to the image."""

    def __init__(self, masks: Mapping[str, Mask]):
        """Sort the masks by name.

        Args:
            masks: By name; of any size, not empty.

        Raises:
            ValueError: If there are none.
        """
        if not masks:
            raise ValueError("need at least one mask")
        self.names = sorted(masks)
        self.masks = [PackedMask.of(masks[name]) for name in self.names]

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Choose a mask (`acontrol.masks.shape.MaskSource`)."""
        index = int(rng.integers(len(self.masks)))
        name, mask = self.names[index], self.masks[index].unpacked()
        if mask.shape != size:
            mask = np.asarray(shrink_mask(Image.fromarray(mask), (size[1], size[0])))
        if mask.sum() < min_pixels:
            return f"{name} is smaller than one attention cell"
        return cut_out(mask, name)


class LearnedMasks(ListedMasks):
    """Square masks drawn by a model, placed anywhere unless they touch the edge.

    A shape keeps its share of the image and its proportions in an image of any size; one that
    touches the edge is stretched with its frame and keeps touching it.
    """

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Choose a mask (`acontrol.masks.shape.MaskSource`)."""
        index = int(rng.integers(len(self.masks)))
        name, mask = self.names[index], self.masks[index].unpacked()
        flip = bool(rng.integers(2))
        at_edge = bool(sides_of(mask))
        zoom = [new / old for new, old in zip(size, mask.shape, strict=True)]
        if not at_edge:
            # A rotation by 180 degrees keeps its direction.
            mask = mask[::-1, ::-1] if flip else mask
            zoom = [float(np.sqrt(zoom[0] * zoom[1]))] * 2
        mask = _zoomed(mask, zoom)
        if mask.sum() < max(1, min_pixels):
            return f"{name} is smaller than one attention cell"
        shape = cut_out(mask, name)
        if np.greater(shape.pixels.shape, size).any():
            return f"{name} would be larger than the image"
        return shape if at_edge else Shape(shape.pixels, None, name)


def _zoomed(mask: Mask, zoom: list[float]) -> Mask:
    """A mask at another size, with a smooth edge if it grows."""
    size = [max(1, round(old * by)) for old, by in zip(mask.shape, zoom, strict=True)]
    if min(zoom) <= 1:
        return np.asarray(shrink_mask(Image.fromarray(mask), (size[1], size[0])))
    grey = Image.fromarray(mask).convert("L").resize((size[1], size[0]), _SMOOTH)
    levels: npt.NDArray[np.uint8] = np.asarray(grey)
    return levels >= 128
