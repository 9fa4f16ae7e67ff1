"""Where the defects of a plan go: a mask for each normal image, from the source asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from PIL import Image

from acontrol.data.images import image_size, read_image, read_mask, shrink_mask
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.errors import UserError
from acontrol.masks.foreground import corrected, foreground, shared_foreground
from acontrol.masks.listed import LearnedMasks, ListedMasks
from acontrol.masks.perlin import PerlinMasks
from acontrol.masks.placement import NotPlaced, Rules, learn_rules, place
from acontrol.masks.real import RealMasks
from acontrol.masks.settings import SourceName
from acontrol.masks.shape import Mask, MaskSource
from acontrol.masks.store import read_learned

DefectType = tuple[str, str]  # Category and defect.
_NORMALS = 16  # Good images of a category that tell whether its product keeps its place.


@dataclass(frozen=True)
class PlacedMask:
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


def same_mask(source: LabelledImage, normal: Path) -> PlacedMask:
    """A training mask where it is, brought to the normal image's size.

    Raises:
        UserError: If an image or the mask is bad.
    """
    mask = shrink_mask(Image.fromarray(source.read_mask()), image_size(normal))
    return PlacedMask.of("same", source.mask, np.asarray(mask))


class MaskSampler:
    """Finds the places for defects.

    What a source learns from training masks, it learns once, when it is first needed.
    """

    def __init__(
        self,
        training: Callable[[DefectType], Sequence[LabelledImage]],
        *,
        cells: int,
        files: Path | None = None,
        base_digest: str | None = None,
        split: Literal["train", "test", "all"] = "train",
    ):
        """Take the training masks.

        Args:
            training: Gives the labelled images of a category and defect, none if unknown.
            cells: Side of the grid of attention cells; a mask covers at least one's area.
            files: Folder of masks for "file", FILES/DEFECT/*.png or FILES/*.png for all; or
                what launch.masks wrote, for "learned".
            base_digest: Of the base that learned masks must be of; None takes any.
            split: The part of the data that learned masks must be of.
        """
        self._training = training
        self._cells = cells
        self._files = files
        self._base_digest = base_digest
        self._split: Literal["train", "test", "all"] = split
        self._sources: dict[tuple[str, DefectType], MaskSource] = {}
        self._rules: dict[tuple[str, DefectType], Rules] = {}
        self._origins: dict[tuple[str, DefectType], dict[str, Path]] = {}
        self._shared: dict[tuple[Path, str], Mask | None] = {}
        self._products: dict[Path, Mask] = {}

    def find(
        self,
        source: SourceName,
        kind: DefectType,
        product: tuple[MvtecFolder, str],
        normal: Path,
        same: LabelledImage | None,
        seed: int,
    ) -> PlacedMask | NotPlaced:
        """Find the place for one drawing.

        Args:
            source: Where masks are from.
            kind: Category and defect whose masks are taken.
            product: Folder of the normal images, and the category there.
            normal: The image to draw on.
            same: The training image whose mask "same" takes.
            seed: The same seed gives the same place.

        Raises:
            UserError: If an image or a mask is bad, or the source has no masks of this defect.
        """
        if source == "same" and same is not None:
            return same_mask(same, normal)
        key = (source, kind)
        if key not in self._rules:
            self._learn(source, kind, product)
        found = place(
            self._sources[key],
            self._product(product, normal),
            self._rules[key],
            cells=self._cells,
            seed=seed,
        )
        if isinstance(found, NotPlaced):
            return found
        origin = self._origins[key].get(found.origin or "")
        return PlacedMask.of(source, origin, found.mask)

    def _learn(
        self, source: SourceName, kind: DefectType, product: tuple[MvtecFolder, str]
    ) -> None:
        """Read a defect's training masks, and what tells where they lie."""
        key = (source, kind)
        self._origins[key] = {}
        if source == "file":  # The user's own stay where and as they are.
            listed = self._listed(kind[1])
            self._rules[key] = Rules(on_product=False)
            self._sources[key] = ListedMasks({name: one for name, (_, one) in listed.items()})
            self._origins[key] = {name: path for name, (path, _) in listed.items()}
            return
        images = self._training(kind)
        if not images and source != "perlin":
            raise UserError(
                f"no training masks of {'/'.join(kind)} for masks {source!r}: give a mask "
                "file, or masks 'perlin'"
            )
        masks = {one.id: one.read_mask() for one in images}
        shared = self._common_place(product)
        products = [corrected(foreground(read_image(one.image)), shared) for one in images]
        rules = learn_rules([masks[one.id] for one in images], products) if images else Rules()
        self._rules[key] = rules
        if source == "perlin":
            self._sources[key] = PerlinMasks()
        elif source == "learned":
            drawn = self._drawn(kind)
            self._origins[key] = {name: path for name, (path, _) in drawn.items()}
            self._sources[key] = LearnedMasks({name: one for name, (_, one) in drawn.items()})
        else:
            self._origins[key] = {one.id: one.mask for one in images}
            self._sources[key] = RealMasks(masks)

    def _drawn(self, kind: DefectType) -> dict[str, tuple[Path, Mask]]:
        if self._files is None:
            raise UserError("--masks learned needs what launch.masks wrote: --masks-path MASKS")
        return read_learned(
            self._files, *kind, base_digest=self._base_digest, split=self._split
        )

    def _listed(self, defect: str) -> dict[str, tuple[Path, Mask]]:
        if self._files is None:
            raise UserError("--masks file needs a folder of masks: --masks-path DIR")
        folder = self._files / defect
        folder = folder if folder.is_dir() else self._files
        paths = sorted(folder.glob("*.png"))
        if not paths:
            raise UserError(f"--masks-path {self._files}: no .png there, nor in {defect}/")
        found = {}
        for path in paths:
            found[path.name] = (path, read_mask(path, image_size(path)))
        return found

    def _common_place(self, product: tuple[MvtecFolder, str]) -> Mask | None:
        folder, category = product
        key = (folder.root, category)
        if key not in self._shared:
            normals = folder.normals(category)[:_NORMALS]
            self._shared[key] = shared_foreground(
                [foreground(read_image(one)) for one in normals]
            )
        return self._shared[key]

    def _product(self, product: tuple[MvtecFolder, str], normal: Path) -> Mask:
        if normal not in self._products:
            estimate = foreground(read_image(normal))
            self._products[normal] = corrected(estimate, self._common_place(product))
        return self._products[normal]
