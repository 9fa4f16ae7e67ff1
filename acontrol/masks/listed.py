"""Masks that are taken as they are: the user's own, and those of a trained model."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from acontrol.data.framing import shrink_mask
from acontrol.masks.shape import Mask, Shape, cut_out


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
