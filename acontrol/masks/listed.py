"""Masks that are taken as they are: the user's own, and those of a trained model."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from acontrol.data.images import shrink_mask
from acontrol.masks.shape import Mask, Shape, cut_out, sides_of

_SMOOTH = Image.Resampling.BICUBIC


class ListedMasks:
    """Gives masks of a list, each a whole image's, brought to the image's size."""

    def __init__(self, masks: Mapping[str, Mask]):
        """Take the masks.

        Args:
            masks: By name; of any size, not empty.

        Raises:
            ValueError: If there is none.
        """
        if not masks:
            raise ValueError("need at least one mask")
        self.names = sorted(masks)
        self.masks = [masks[name] for name in self.names]

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Choose one, as `acontrol.masks.shape.MaskSource` says."""
        which = int(rng.integers(len(self.masks)))
        mask = self.masks[which]
        if mask.shape != size:
            shrunk = shrink_mask(Image.fromarray(mask), (size[1], size[0]))
            mask = np.asarray(shrunk)
        if mask.sum() < min_pixels:
            return f"{self.names[which]} is smaller than one attention cell"
        return cut_out(mask, self.names[which])


class LearnedMasks(ListedMasks):
    """Gives square masks that a model drew, placed anywhere but where they touch the edge.

    A shape keeps its share of the image and its proportions, in whatever image it comes to;
    one that touches the edge is stretched with its frame, so that it still does.
    """

    def sample(
        self, size: tuple[int, int], min_pixels: int, rng: np.random.Generator
    ) -> Shape | str:
        """Choose one, as `acontrol.masks.shape.MaskSource` says."""
        which = int(rng.integers(len(self.masks)))
        name, mask = self.names[which], self.masks[which]
        flips = int(rng.integers(2))
        edges = bool(sides_of(mask))
        zoom = [new / old for new, old in zip(size, mask.shape, strict=True)]
        if not edges:
            # Turned by half a circle, its direction stays.
            mask = mask[::-1, ::-1] if flips else mask
            zoom = [float(np.sqrt(zoom[0] * zoom[1]))] * 2
        made = _enlarged(mask, zoom)
        if made.sum() < max(1, min_pixels):
            return f"{name} is smaller than one attention cell"
        shape = cut_out(made, name)
        if shape.pixels.shape[0] > size[0] or shape.pixels.shape[1] > size[1]:
            return f"{name} would be larger than the image"
        return shape if edges else Shape(shape.pixels, None, name)


def _enlarged(mask: Mask, zoom: list[float]) -> Mask:
    """A mask at another size; one that grows keeps a smooth edge."""
    size = [max(1, round(old * by)) for old, by in zip(mask.shape, zoom, strict=True)]
    if min(zoom) <= 1:
        return np.asarray(shrink_mask(Image.fromarray(mask), (size[1], size[0])))
    grey = Image.fromarray(mask).convert("L").resize((size[1], size[0]), _SMOOTH)
    levels: npt.NDArray[np.uint8] = np.asarray(grey)
    return levels >= 128
