"""Decide every image of a data set before the first is drawn.

The plan is a pure function of the requests and the folders' contents, and each image has a
seed of its own, so what is drawn can be drawn again.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from acontrol.data.images import image_size, read_mask
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.prompts import phrase, target_text
from acontrol.errors import UserError
from acontrol.generation.request import Request
from acontrol.generation.settings import Sampling
from acontrol.masks.placement import NotPlaced
from acontrol.masks.sampler import DefectType, MaskSampler, PlacedMask
from acontrol.masks.settings import SourceName
from acontrol.seeding import derive_seed


@dataclass(frozen=True)
class Reference:
    """Whose defect is drawn.

    Attributes:
        image: The file.
        mask: Its mask's.
        phrase: The anomaly's words: T_a without its template.
        kind: Category and defect, where it is one of the data set's.
    """

    image: Path
    mask: Path
    phrase: str
    kind: DefectType | None = None


@dataclass(frozen=True)
class PlannedImage:
    """One image to draw.

    Attributes:
        name: Its place in the data set, without a suffix: (category, defect, number).
        normal: Image to draw on.
        reference: Whose defect is drawn.
        mask: Where it goes.
        prompt: Target text T_t.
        seed: Of its own noise.
        sampling: How it is drawn.
    """

    name: tuple[str, str, str]
    normal: Path
    reference: Reference
    mask: PlacedMask
    prompt: str
    seed: int
    sampling: Sampling


def every_defect(
    folder: MvtecFolder,
    *,
    split: Literal["train", "test", "all"],
    count: int,
    category: str | None = None,
    defect: str | None = None,
    normal_folder: MvtecFolder | None = None,
    reference_category: str | None = None,
) -> list[tuple[str, Request]]:
    """Ask for as many images of every category and defect.

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
    kinds = sorted({(one.category, one.defect) for one in images})
    if not kinds:
        raise UserError(f"{folder.root}: no defect images to take references from")
    asked = []
    for kind, name in kinds:
        product = _product(normal_folder or folder, kind)
        # Named only where it differs: then nothing else says whose references to take.
        other = reference_category or (kind if kind != product else None)
        asked.append(
            (
                f"{kind}/{name}",
                Request(category=product, defect=name, reference_category=other, count=count),
            )
        )
    return asked


def _product(source: MvtecFolder, category: str) -> str:
    if category in source.categories:
        return category
    if len(source.categories) == 1:
        return source.categories[0]
    raise UserError(
        f"--normal {source.root}: no category {category!r}, nor is it a single category; "
        f"it has {', '.join(source.categories)}"
    )


class Planner:
    """Turns requests into a plan."""

    def __init__(
        self,
        folder: MvtecFolder,
        *,
        split: Literal["train", "test", "all"],
        cells: int = 16,
        masks_path: Path | None = None,
        normal_folder: MvtecFolder | None = None,
        masks: SourceName = "real",
        sampling: Sampling | None = None,
        seed: int = 0,
        read_phrase: Callable[[Sequence[str]], object] | None = None,
        base_digest: str | None = None,
    ):
        """Take the data.

        References and masks come only from the part of the data that was trained on, so that
        a detector tested on the rest has not seen it in any form.

        Args:
            folder: The defects.
            split: Where references and masks come from: what the adapter was trained on.
            cells: Side of the grid of attention cells; a mask covers at least one's area.
            masks_path: Folder of masks for "file" and "learned".
            normal_folder: The good images, if elsewhere.
            masks: Where masks are from, if a request does not say.
            sampling: How images are drawn, if a request does not say.
            seed: Everything drawn follows from it.
            read_phrase: Raises ValueError for words that the model cannot read.
            base_digest: Of the base that learned masks must be of; None takes any.
        """
        self.folder = folder
        self.split: Literal["train", "test", "all"] = split
        self.normal_folder = normal_folder or folder
        self.mask_sampler = MaskSampler(
            self.training,
            cells=cells,
            files=masks_path,
            base_digest=base_digest,
            split=split,
        )
        self.masks: SourceName = masks
        self.sampling = sampling or Sampling()
        self.seed = seed
        self._read_phrase = read_phrase
        self._training: dict[DefectType, list[LabelledImage]] = {}
        self._good: dict[str, tuple[Path, ...]] = {}
        self._counts: dict[DefectType, int] = {}

    def plan(
        self, asked: Iterable[tuple[str, Request]], base: Path = Path()
    ) -> tuple[list[PlannedImage], list[str]]:
        """Decide every image.

        Args:
            asked: Where each request is from, for errors, and the request.
            base: Folder that the requests' paths start at.

        Returns:
            The plan, and a line for each image that found no place for its defect.

        Raises:
            UserError: At the first request that cannot be met; or if no defect at all found a
                place.
        """
        planned: list[PlannedImage] = []
        left_out: list[str] = []
        for where, request in asked:
            try:
                some, none = self._plan(where, request, base)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            planned += some
            left_out += none
        if not planned:
            raise UserError(f"no defect found a place: {left_out[0]}")
        return planned, left_out

    def _plan(
        self, where: str, request: Request, base: Path
    ) -> tuple[list[PlannedImage], list[str]]:
        label = (request.category, request.defect)
        line = where.rpartition(":")[2]  # Of a file its line: the file may move.
        seed = derive_seed(self.seed, line) if request.seed is None else request.seed
        kind = (request.reference_category or request.category, request.defect)
        own_mask = None
        normals: Sequence[Path]
        if request.normal is not None:
            normals = [base / request.normal]
            size = image_size(normals[0])
            if request.mask is not None:
                file = base / request.mask
                own_mask = PlacedMask.of("file", file, np.asarray(read_mask(file, size)))
        else:
            normals = self._normals(request.category)
        references = self._references(request, kind, base)
        source = request.masks or self.masks
        planned, left_out = [], []
        for number in range(request.count):
            choice = random.Random(derive_seed(seed, "plan", number))
            reference = choice.choice(references)
            normal = choice.choice(normals)
            found: PlacedMask | NotPlaced | None = own_mask
            if found is None:
                training = self.training(kind) if source != "file" else []
                found = self.mask_sampler.find(
                    source,
                    kind,
                    (self.normal_folder, request.category),
                    normal,
                    choice.choice(training) if training else None,
                    derive_seed(seed, "place", number),
                )
            if isinstance(found, NotPlaced):
                left_out.append(f"{where} {number}, on {normal.name}: {found.reason}")
                continue
            running = self._counts.get(label, 0)
            self._counts[label] = running + 1
            prompt = request.prompt or target_text(request.category, reference.phrase)
            planned.append(
                PlannedImage(
                    name=(*label, f"{running:03d}"),
                    normal=normal,
                    reference=reference,
                    mask=found,
                    prompt=prompt,
                    # A seed that worked once can be asked for by itself.
                    seed=derive_seed(seed, "noise", number) if number else seed,
                    sampling=request.sampling(self.sampling),
                )
            )
        return planned, left_out

    def training(self, kind: DefectType) -> list[LabelledImage]:
        """The training images of a category and defect; none where there is no such defect."""
        if kind not in self._training:
            category, defect = kind
            known = category in self.folder.categories
            there = known and defect in self.folder.defect_types(category)
            self._training[kind] = (
                list(self.folder.labelled(self.split, category=category, defect=defect))
                if there
                else []
            )
        return self._training[kind]

    def _normals(self, category: str) -> tuple[Path, ...]:
        if category not in self._good:
            source = self.normal_folder
            if category not in source.categories:
                raise UserError(
                    f"{source.root}: no category {category!r} of good images; it has "
                    f"{', '.join(source.categories)}"
                )
            self._good[category] = source.normals(category)
        if not self._good[category]:
            raise UserError(
                f"{self.normal_folder.root}: {category} has no good images to draw on "
                "(train/good); name a folder that has some with --normal ROOT"
            )
        return self._good[category]

    def _references(self, request: Request, kind: DefectType, base: Path) -> list[Reference]:
        words = request.reference_phrase
        if words is not None and self._read_phrase is not None:
            try:
                self._read_phrase([words])
            except ValueError as error:
                raise UserError(str(error)) from error
        if request.reference_image is not None and request.reference_mask is not None:
            image, mask = base / request.reference_image, base / request.reference_mask
            read_mask(mask, image_size(image))
            return [Reference(image, mask, words or phrase(request.defect))]
        named = request.reference
        if named is not None:
            category, defect, identity = named.split("/")
            kind = (category, defect)
        images = self.training(kind)
        if named is not None:
            images = [one for one in images if one.id == identity]
        if not images:
            part = "the training part of " if self.split == "train" else ""
            raise UserError(
                f"no reference {named or '/'.join(kind)} in {part}{self.folder.root}"
            )
        return [Reference(one.image, one.mask, words or one.phrase, kind) for one in images]
