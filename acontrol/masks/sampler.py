"""Where new defects go: a mask for each normal image, from the chosen source."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from PIL import Image

from acontrol.config import THIRD
from acontrol.data.images import image_size, read_image, read_mask, shrink_mask
from acontrol.data.listing import by_id
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.errors import UserError
from acontrol.masks.foreground import corrected, foreground, shared_foreground
from acontrol.masks.listed import LearnedMasks, ListedMasks
from acontrol.masks.perlin import PerlinMasks
from acontrol.masks.placement import NotPlaced, Rules, learn_rules, place
from acontrol.masks.real import RealMasks
from acontrol.masks.settings import SourceName
from acontrol.masks.shape import Mask, MaskSource, PackedMask
from acontrol.masks.store import read_learned

DefectType = tuple[str, str]  # Category and defect.
_NORMALS = 16  # Normal images of a category that show whether its product keeps its place.


@dataclass(frozen=True)
class PlacedMask:
    """A mask as large as the image that it is for.

    Attributes:
        source: Its source.
        origin: The mask file that it was made from, if any.
        packed: Its pixels.
    """

    source: SourceName
    origin: Path | None
    packed: PackedMask

    @classmethod
    def of(cls, source: SourceName, origin: Path | None, mask: Mask) -> Self:
        """Pack a mask, (height, width)."""
        return cls(source, origin, PackedMask.of(mask))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.packed.shape[1], self.packed.shape[0]

    @property
    def pixels(self) -> int:
        """How many it has."""
        return int(self.packed.unpacked().sum())

    def image(self) -> Image.Image:
        """The mask, 1-bit."""
        return Image.fromarray(self.packed.unpacked())


@dataclass(frozen=True)
class _Prepared:
    """A source for one defect type, its rules, and the files of its masks by name."""

    source: MaskSource
    rules: Rules
    files: Mapping[str, Path]


class _FileMasks(Mapping[str, Mask]):
    """The masks of labelled images by id, read when asked for: each may be 50 MB."""

    def __init__(self, images: Sequence[LabelledImage]):
        self._images = {image.id: image for image in images}

    def __getitem__(self, name: str) -> Mask:
        return self._images[name].read_mask()

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)


class MaskSampler:
    """Places masks on normal images. Each source learns from training masks once."""

    def __init__(
        self,
        training: Callable[[DefectType], Sequence[LabelledImage]],
        *,
        files: Path | None,
        base_digest: str | None,
        split: Literal["train", "test", "all"],
        split_digest: str = THIRD,
    ):
        """Store the settings; nothing is read yet.

        Args:
            training: Gives the labelled images of a category and defect, none if unknown.
            files: Folder of masks for "file", FILES/DEFECT/* or FILES/* for all; or
                the output of launch.masks, for "learned".
            base_digest: The base of learned masks; None accepts any.
            split: The split of learned masks.
            split_digest: Its record.
        """
        self._training = training
        self._files = files
        self._base_digest = base_digest
        self._split: Literal["train", "test", "all"] = split
        self._split_digest = split_digest
        self._prepared: dict[tuple[str, DefectType], _Prepared] = {}
        self._shared: dict[tuple[Path, str], Mask | None] = {}
        self._products: dict[Path, PackedMask] = {}

    def find(
        self,
        source: SourceName,
        defect_type: DefectType,
        product: tuple[MvtecFolder, str],
        normal: Path,
        same: LabelledImage | None,
        seed: int,
        *,
        cells: int | None,
    ) -> PlacedMask | NotPlaced:
        """Find the place of one new defect.

        Args:
            source: The mask source.
            defect_type: Category and defect of the masks.
            product: Folder of the normal images, and the category there.
            normal: The image to draw on.
            same: The training image whose mask "same" copies.
            seed: The same seed gives the same place.
            cells: As `acontrol.masks.placement.place` takes it.

        Raises:
            UserError: If an image or a mask is bad, or the source has no masks of this defect.
        """
        if source == "same" and same is not None:
            mask = shrink_mask(Image.fromarray(same.read_mask()), image_size(normal))
            return PlacedMask.of("same", same.mask, np.asarray(mask))
        key = (source, defect_type)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(source, defect_type, product)
        prepared = self._prepared[key]
        placed = place(
            prepared.source,
            self._product(product, normal),
            prepared.rules,
            cells=cells,
            seed=seed,
        )
        if isinstance(placed, NotPlaced):
            return placed
        return PlacedMask.of(source, prepared.files.get(placed.origin or ""), placed.mask)

    def _prepare(
        self, source: SourceName, defect_type: DefectType, product: tuple[MvtecFolder, str]
    ) -> _Prepared:
        """Read a defect's masks, and learn where they may be placed."""
        if source == "file":  # The user's own keep their place.
            files, masks = _parted(self._listed(defect_type[1]))
            return _Prepared(ListedMasks(masks), Rules(on_product=False), files)
        images = self._training(defect_type)
        if not images and source != "perlin":
            raise UserError(
                f"no training masks of {'/'.join(defect_type)} for masks {source!r}: give a "
                "mask file, or masks 'perlin'"
            )
        shared = self._shared_place(product)
        pairs = (
            (image.read_mask(), corrected(foreground(read_image(image.image)), shared))
            for image in images
        )
        rules = learn_rules(pairs) if images else Rules()
        if source == "perlin":
            return _Prepared(PerlinMasks(), rules, {})
        if source == "learned":
            files, masks = _parted(self._learned(defect_type))
            return _Prepared(LearnedMasks(masks), rules, files)
        training = _FileMasks(images)
        return _Prepared(RealMasks(training), rules, {image.id: image.mask for image in images})

    def _learned(self, defect_type: DefectType) -> dict[str, tuple[Path, Mask]]:
        if self._files is None:
            raise UserError(
                "--masks learned needs the output of acontrol masks: --masks-path MASKS"
            )
        return read_learned(
            self._files,
            *defect_type,
            base_digest=self._base_digest,
            split=self._split,
            split_digest=self._split_digest,
        )

    def _listed(self, defect: str) -> dict[str, tuple[Path, Mask]]:
        if self._files is None:
            raise UserError("--masks file needs a folder of masks: --masks-path DIR")
        folder = self._files / defect
        folder = folder if folder.is_dir() else self._files
        paths = sorted(by_id(folder).values())
        if not paths:
            raise UserError(f"--masks-path {self._files}: no image there, nor in {defect}/")
        return {path.name: (path, read_mask(path, image_size(path))) for path in paths}

    def _shared_place(self, product: tuple[MvtecFolder, str]) -> Mask | None:
        folder, category = product
        key = (folder.root, category)
        if key not in self._shared:
            normals = folder.normals(category)[:_NORMALS]
            self._shared[key] = shared_foreground(
                foreground(read_image(normal)) for normal in normals
            )
        return self._shared[key]

    def _product(self, product: tuple[MvtecFolder, str], normal: Path) -> Mask:
        if normal not in self._products:
            estimate = foreground(read_image(normal))
            product_mask = corrected(estimate, self._shared_place(product))
            self._products[normal] = PackedMask.of(product_mask)
        return self._products[normal].unpacked()


def _parted(
    masks: Mapping[str, tuple[Path, Mask]],
) -> tuple[dict[str, Path], dict[str, Mask]]:
    """Files by name, and masks by name."""
    files = {name: file for name, (file, _) in masks.items()}
    return files, {name: mask for name, (_, mask) in masks.items()}
