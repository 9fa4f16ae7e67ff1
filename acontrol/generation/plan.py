"""Decide every image of a data set before the first is drawn.

The plan is a pure function of the requests and the folders' contents, and each image has its
own seed, so every image can be drawn again.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from acontrol.data.images import image_size, read_mask
from acontrol.data.listing import numbered
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.prompts import phrase, target_text
from acontrol.errors import UserError, nearest
from acontrol.generation.request import Request
from acontrol.generation.settings import Sampling
from acontrol.masks.placement import NotPlaced
from acontrol.masks.sampler import DefectType, MaskSampler, PlacedMask
from acontrol.masks.settings import SourceName
from acontrol.progress import progress
from acontrol.seeding import derive_seed

AS_LARGE = 4  # A reference's defect has a quarter to four times the mask's pixels, if one has.


@dataclass(frozen=True)
class Reference:
    """The defect to imitate.

    Attributes:
        image: File of the image that shows it.
        mask: File of its mask.
        phrase: The anomaly's words: T_a without its template.
        defect_type: Category and defect, if it is one of the data set's.
        caption: The image's T_t; None if it is of another product than what is drawn on, or
            if the request has words of its own.
    """

    image: Path
    mask: Path
    phrase: str
    defect_type: DefectType | None = None
    caption: str | None = None


@dataclass(frozen=True)
class PlannedImage:
    """One image to draw.

    Attributes:
        name: Category, defect and number, which name its files.
        normal: Image to draw on.
        reference: The defect to imitate.
        mask: Where to draw it.
        prompt: Target text T_t.
        seed: Of its noise.
        sampling: Sampling settings.
    """

    name: tuple[str, str, str]
    normal: Path
    reference: Reference
    mask: PlacedMask
    prompt: str
    seed: int
    sampling: Sampling


def requests_for_all(
    folder: MvtecFolder,
    *,
    split: Literal["train", "test", "all"],
    count: int,
    category: str | None = None,
    defect: str | None = None,
    normal_folder: MvtecFolder | None = None,
    reference_category: str | None = None,
) -> list[tuple[str, Request]]:
    """Request the same number of images of every category and defect.

    Args:
        folder: The defects.
        split: The part of it that references come from.
        count: Images of each category and defect.
        category: Only this one's defects.
        defect: Only this defect.
        normal_folder: The good images, if elsewhere: those of the same category, or of its
            only category.
        reference_category: Take references from this category.

    Raises:
        UserError: If nothing matches.
    """
    images = folder.labelled(split, category=category, defect=defect)
    defect_types = sorted({(image.category, image.defect) for image in images})
    if not defect_types:
        raise UserError(f"{folder.root}: no defect images to take references from")
    requests = []
    for source, name in defect_types:
        product = _product(normal_folder or folder, source)
        # Only set where it differs, as then nothing else tells where references are.
        reference = reference_category or (source if source != product else None)
        request = Request(
            category=product, defect=name, reference_category=reference, count=count
        )
        requests.append((f"{source}/{name}", request))
    return requests


def _product(source: MvtecFolder, category: str) -> str:
    """The category of normal images that fits a category of defects."""
    if category in source.categories:
        return category
    if len(source.categories) == 1:
        return source.categories[0]
    raise UserError(
        f"--normal {source.root}: no category {category!r}, nor is it a single category; "
        f"{nearest(category, source.categories)}"
    )


class Planner:
    """Turns requests into planned images.

    References and masks come only from the part of the data that was trained on, so that a
    detector tested on the rest has not seen it in any form.
    """

    def __init__(
        self,
        folder: MvtecFolder,
        *,
        split: Literal["train", "test", "all"],
        cells: int = 16,
        crop: float = 0,
        masks_path: Path | None = None,
        normal_folder: MvtecFolder | None = None,
        masks: SourceName = "real",
        sampling: Sampling | None = None,
        seed: int = 0,
        read_phrase: Callable[[Sequence[str]], object] | None = None,
        base_digest: str | None = None,
    ):
        """Set the data and the defaults of requests.

        Args:
            folder: The defects.
            split: Part of the data for references and masks: what the adapter was trained on.
            cells: Side of the model's grid of attention cells. Where it draws whole images, a
                mask covers at least one's area.
            crop: What it draws where no sampling settings say: squares of so many longest
                sides of the defect, or 0 for whole images.
            masks_path: Folder of masks for "file" and "learned".
            normal_folder: The good images, if elsewhere.
            masks: Default source of masks.
            sampling: Default sampling settings.
            seed: All random choices follow from it.
            read_phrase: Raises ValueError for words that the model cannot read.
            base_digest: Of the base that learned masks must be from; None takes any.
        """
        self.folder = folder
        self.split: Literal["train", "test", "all"] = split
        self.normal_folder = normal_folder or folder
        self.mask_sampler = MaskSampler(
            self.training,
            files=masks_path,
            base_digest=base_digest,
            split=split,
            split_digest=folder.trained_on(split).split_digest,
        )
        self._cells, self._crop = cells, crop
        self.masks: SourceName = masks
        self.sampling = sampling or Sampling()
        self.seed = seed
        self._read_phrase = read_phrase
        self._training: dict[DefectType, list[LabelledImage]] = {}
        self._good: dict[str, tuple[Path, ...]] = {}
        self._areas: dict[Path, int] = {}
        self._counts: dict[DefectType, int] = {}

    def plan_images(
        self, requests: Iterable[tuple[str, Request]], base: Path = Path()
    ) -> tuple[list[PlannedImage], list[str]]:
        """Plan every image.

        Args:
            requests: The requests, each with where it is from, for errors.
            base: Folder that the requests' paths start at.

        Returns:
            The plan, and a line for each image that has no place for its defect.

        Raises:
            UserError: At the first request that cannot be met; or if no image has a place for
                its defect.
        """
        images: list[PlannedImage] = []
        left_out: list[str] = []
        requests = list(requests)
        total = sum(request.count for _, request in requests)
        with progress("planning", total, "image", leave=False) as bar:
            for where, request in requests:
                try:
                    planned, failed = self._plan_request(where, request, base, bar.update)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from error
                images += planned
                left_out += failed
        if not images:
            raise UserError(
                f"no defect found a place: {left_out[0]}; --masks same keeps training masks "
                "where they are, --masks file takes your own"
            )
        return _padded(images), left_out

    def _plan_request(
        self, where: str, request: Request, base: Path, advance: Callable[[], object]
    ) -> tuple[list[PlannedImage], list[str]]:
        label = (request.category, request.defect)
        line = where.rpartition(":")[2]  # Only the line number: the file may move.
        seed = derive_seed(self.seed, line) if request.seed is None else request.seed
        sampling = request.sampling(self.sampling)
        try:
            sampling.check()
        except ValueError as error:
            raise UserError(str(error)) from error
        defect_type = (request.reference_category or request.category, request.defect)
        own_mask = None
        normals: Sequence[Path]
        if request.normal is not None:
            normals = [base / Path(request.normal).expanduser()]
            size = image_size(normals[0])
            if request.mask is not None:
                file = base / Path(request.mask).expanduser()
                own_mask = PlacedMask.of("file", file, np.asarray(read_mask(file, size)))
        else:
            normals = self._normals(request.category)
        references = self._references(request, defect_type, base)
        source = request.masks or self.masks
        images, left_out = [], []
        for number in range(request.count):
            advance()
            rng = random.Random(derive_seed(seed, "plan", number))
            normal = rng.choice(normals)
            mask: PlacedMask | NotPlaced | None = own_mask
            if mask is None:
                training = self.training(defect_type) if source != "file" else []
                mask = self.mask_sampler.find(
                    source,
                    defect_type,
                    (self.normal_folder, request.category),
                    normal,
                    rng.choice(training) if training else None,
                    derive_seed(seed, "place", number),
                    cells=self.cells(sampling),
                )
            if isinstance(mask, NotPlaced):
                left_out.append(f"{where} {number}, on {normal.name}: {mask.reason}")
                continue
            reference = self._as_large(references, mask, rng)
            count = self._counts.get(label, 0)
            self._counts[label] = count + 1
            images.append(
                PlannedImage(
                    name=(*label, f"{count:03d}"),
                    normal=normal,
                    reference=reference,
                    mask=mask,
                    prompt=request.prompt
                    or reference.caption
                    or target_text(request.category, reference.phrase),
                    # A seed that worked once can be requested by itself.
                    seed=derive_seed(seed, "noise", number) if number else seed,
                    sampling=sampling,
                )
            )
        return images, left_out

    def cells(self, sampling: Sampling) -> int | None:
        """Cells of the whole image, or None where a square around the defect is drawn."""
        crop = self._crop if sampling.crop is None else sampling.crop
        return None if crop else self._cells

    def training(self, defect_type: DefectType) -> list[LabelledImage]:
        """The training images of a category and defect; empty for unknown ones."""
        if defect_type not in self._training:
            category, defect = defect_type
            exists = category in self.folder.categories and defect in self.folder.defect_types(
                category
            )
            self._training[defect_type] = (
                list(self.folder.labelled(self.split, category=category, defect=defect))
                if exists
                else []
            )
        return self._training[defect_type]

    def _normals(self, category: str) -> tuple[Path, ...]:
        if category not in self._good:
            source = self.normal_folder
            if category not in source.categories:
                raise UserError(
                    f"{source.root}: no category {category!r} of good images; "
                    f"{nearest(category, source.categories)}"
                )
            self._good[category] = source.normals(category)
        if not self._good[category]:
            raise UserError(
                f"{self.normal_folder.root}: {category} has no good images to draw on "
                "(train/good); name a folder that has some with --normal ROOT"
            )
        return self._good[category]

    def _as_large(
        self, references: Sequence[Reference], mask: PlacedMask, rng: random.Random
    ) -> Reference:
        """One of the references whose defect is about as large as the mask, else the nearest.

        A speck's look says little of a large defect, and in a large mask it is a blur.
        """
        if len(references) == 1:
            return references[0]
        wanted = math.log(max(1, mask.pixels))
        apart = [abs(math.log(self._area(own)) - wanted) for own in references]
        limit = max(min(apart), math.log(AS_LARGE))
        near = [own for own, far in zip(references, apart, strict=True) if far <= limit]
        return rng.choice(near)

    def _area(self, reference: Reference) -> int:
        """Pixels of its defect."""
        if reference.mask not in self._areas:
            mask = read_mask(reference.mask, image_size(reference.image))
            self._areas[reference.mask] = max(1, int(np.asarray(mask).sum()))
        return self._areas[reference.mask]

    def _references(
        self, request: Request, defect_type: DefectType, base: Path
    ) -> list[Reference]:
        words = request.reference_phrase
        if words is not None and self._read_phrase is not None:
            try:
                self._read_phrase([words])
            except ValueError as error:
                raise UserError(str(error)) from error
        if request.reference_image is not None and request.reference_mask is not None:
            path = base / Path(request.reference_image).expanduser()
            mask = base / Path(request.reference_mask).expanduser()
            read_mask(mask, image_size(path))
            return [Reference(path, mask, words or phrase(request.defect))]
        identity = None
        if request.reference is not None:
            category, defect, identity = request.reference.split("/")
            defect_type = (category, defect)
        images = [image for image in self.training(defect_type) if identity in (None, image.id)]
        if not images:
            part = "the training part of " if self.split == "train" else ""
            name = request.reference or "/".join(defect_type)
            raise UserError(f"no reference {name} in {part}{self.folder.root}")
        own = words is None and defect_type[0] == request.category
        return [
            Reference(
                image.image,
                image.mask,
                words or image.phrase,
                defect_type,
                image.caption if own else None,
            )
            for image in images
        ]


def _padded(images: Sequence[PlannedImage]) -> list[PlannedImage]:
    """The plan with numbers wide enough that sorted names keep their order."""
    counts = Counter(image.name[:2] for image in images)
    return [
        replace(
            image, name=(*image.name[:2], numbered(int(image.name[2]), counts[image.name[:2]]))
        )
        for image in images
    ]
