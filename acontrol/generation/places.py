"""Where the defects of a plan go: a mask for each normal image, from the source asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from PIL import Image

from acontrol.config import UserError
from acontrol.data.framing import shrink_mask
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.pixels import read_image, read_mask
from acontrol.masks.foreground import corrected, foreground, shared_foreground
from acontrol.masks.listed import ListedMasks
from acontrol.masks.perlin import PerlinMasks
from acontrol.masks.placement import NotPlaced, Rules, learn_rules, place
from acontrol.masks.real import RealMasks
from acontrol.masks.shape import Mask, MaskSource

SourceName = Literal["real", "same", "perlin", "file"]
_NORMALS = 16  # Good images of a category that tell whether its product keeps its place.


@dataclass(frozen=True)
class Place:
    """A mask as large as the image that it is for.

    Attributes:
        source: Where it is from.
        origin: The mask file that it was made from, if there was one.
        size: Width and height.
        packed: Its pixels, eight in a byte: a plan holds thousands.
    """

    source: SourceName
    origin: Path | None
    size: tuple[int, int]
    packed: bytes

    @classmethod
    def of(cls, source: SourceName, origin: Path | None, mask: Mask) -> Self:
        """Pack a mask, (height, width)."""
        height, width = mask.shape
        return cls(source, origin, (width, height), np.packbits(mask).tobytes())

    def image(self) -> Image.Image:
        """The mask, 1-bit."""
        width, height = self.size
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=width * height)
        return Image.fromarray(bits.reshape(height, width).astype(bool))


def same_place(source: LabelledImage, normal: Path) -> Place:
    """A training mask where it is, brought to the normal image's size.

    Raises:
        UserError: If an image or the mask is bad.
    """
    height, width = read_image(normal).shape[:2]
    mask = shrink_mask(Image.fromarray(_mask_of(source)), (width, height))
    return Place.of("same", source.mask, np.asarray(mask))


class Places:
    """Finds the places for one set of defects.

    Attributes:
        source: Where masks are from.
    """

    def __init__(
        self,
        source: SourceName,
        training: Mapping[tuple[str, str], list[LabelledImage]],
        *,
        cells: int,
        files: Path | None = None,
    ):
        """Take the training masks.

        Args:
            source: "real", "same", "perlin" or "file".
            training: Labelled images by category and defect; masks are read when needed.
            cells: Side of the grid of attention cells; a mask covers at least one's area.
            files: Folder of masks for "file": FILES/DEFECT/*.png, or FILES/*.png for all.

        Raises:
            UserError: If "file" has no folder, or another source has one.
        """
        if (source == "file") != (files is not None):
            raise UserError("--masks file and --mask-files DIR need each other")
        self.source = source
        self._training = training
        self._cells = cells
        self._files = files
        self._sources: dict[tuple[str, str], MaskSource] = {}
        self._rules: dict[tuple[str, str], Rules] = {}
        self._shared: dict[str, Mask | None] = {}
        self._origins: dict[tuple[str, str], dict[str, Path]] = {}
        self._products: dict[Path, Mask] = {}

    def find(
        self, product: MvtecFolder, normal: Path, category: str, mask: LabelledImage, seed: int
    ) -> Place | NotPlaced:
        """Find the place for one drawing.

        Args:
            product: Folder of the normal images.
            normal: The image to draw on.
            category: Its category there.
            mask: The training image whose mask "same" takes; its defect is drawn.
            seed: The same seed gives the same place.

        Raises:
            UserError: If an image or a mask is bad.
        """
        if self.source == "same":
            return same_place(mask, normal)
        key = (mask.category, mask.defect)
        if key not in self._rules:
            self._learn(key, product, category)
        found = place(
            self._sources[key],
            self._product(product, category, normal),
            self._rules[key],
            cells=self._cells,
            seed=seed,
        )
        if isinstance(found, NotPlaced):
            return found
        origin = self._origins[key].get(found.origin or "")
        return Place.of(self.source, origin, found.mask)

    def _learn(self, key: tuple[str, str], product: MvtecFolder, category: str) -> None:
        """Read a defect's training masks, and what tells where they lie."""
        if self.source == "file":  # The user's own stay where and as they are.
            listed = self._listed(key[1])
            self._rules[key] = Rules(on_product=False)
            self._sources[key] = ListedMasks({name: one for name, (_, one) in listed.items()})
            self._origins[key] = {name: path for name, (path, _) in listed.items()}
            return
        images = self._training[key]
        masks = {one.id: _mask_of(one) for one in images}
        shared = self._common_place(product, category)
        products = [corrected(foreground(read_image(one.image)), shared) for one in images]
        self._rules[key] = learn_rules([masks[one.id] for one in images], products)
        self._origins[key] = {one.id: one.mask for one in images}
        self._sources[key] = RealMasks(masks) if self.source == "real" else PerlinMasks()

    def _listed(self, defect: str) -> dict[str, tuple[Path, Mask]]:
        assert self._files is not None
        folder = self._files / defect
        folder = folder if folder.is_dir() else self._files
        paths = sorted(folder.glob("*.png"))
        if not paths:
            raise UserError(f"--mask-files {self._files}: no .png there, nor in {defect}/")
        found = {}
        for path in paths:
            try:
                with Image.open(path) as opened:
                    size = opened.size
            except OSError as error:
                raise UserError(f"{path}: cannot be read as an image") from error
            found[path.name] = (path, read_mask(path, size))
        return found

    def _common_place(self, product: MvtecFolder, category: str) -> Mask | None:
        if category not in self._shared:
            normals = product.normals(category)[:_NORMALS]
            self._shared[category] = shared_foreground(
                [foreground(read_image(one)) for one in normals]
            )
        return self._shared[category]

    def _product(self, product: MvtecFolder, category: str, normal: Path) -> Mask:
        if normal not in self._products:
            estimate = foreground(read_image(normal))
            self._products[normal] = corrected(estimate, self._common_place(product, category))
        return self._products[normal]


def _mask_of(image: LabelledImage) -> Mask:
    height, width = read_image(image.image).shape[:2]
    return read_mask(image.mask, (width, height))
