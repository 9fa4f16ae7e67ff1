"""Decide every image of a data set before the first is drawn.

The plan is a pure function of the request and the folders' contents, and each image has a
seed of its own, so what is drawn can be drawn again.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acontrol.config import UserError, derive_seed
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.prompts import target_text
from acontrol.generation.places import Place, Places, SourceName
from acontrol.masks.placement import NotPlaced


@dataclass(frozen=True)
class Planned:
    """One image to draw.

    Attributes:
        name: Its place in the data set, without a suffix: (category, defect, number).
        normal: Image to draw on.
        reference: Whose defect is drawn.
        mask: Where it goes.
        prompt: Target text T_t.
        seed: Of its own noise.
    """

    name: tuple[str, str, str]
    normal: Path
    reference: LabelledImage
    mask: Place
    prompt: str
    seed: int


def plan(
    folder: MvtecFolder,
    *,
    split: Literal["train", "test", "all"],
    normal_folder: MvtecFolder | None = None,
    category: str | None = None,
    defect: str | None = None,
    count: int,
    seed: int,
    masks: SourceName = "real",
    mask_files: Path | None = None,
    cells: int = 16,
) -> tuple[list[Planned], list[str]]:
    """Decide every image: normal, reference, mask, text and seed.

    References and masks come only from the part of the data that was trained on, so that a
    detector tested on the rest has not seen it in any form.

    Args:
        folder: The defects.
        split: Where references and masks come from: what the adapter was trained on.
        normal_folder: The good images, if elsewhere: those of the same category, or of its
            only category.
        category: Draw only this one's defects.
        defect: Draw only this defect.
        count: Images of each category and defect.
        seed: Everything drawn follows from it.
        masks: Where masks are from.
        mask_files: The user's own masks, for "file".
        cells: Side of the grid of attention cells; a mask covers at least one's area.

    Returns:
        The plan, and a line for each image that found no place for its defect.

    Raises:
        UserError: If nothing matches, nothing can be placed, or a category has no good images
            to draw on.
    """
    references: dict[tuple[str, str], list[LabelledImage]] = {}
    for image in folder.labelled(split, category=category, defect=defect):
        references.setdefault((image.category, image.defect), []).append(image)
    if not references:
        raise UserError(f"{folder.root}: no defect images to take references from")
    places = Places(masks, references, cells=cells, files=mask_files)
    planned: list[Planned] = []
    left_out: list[str] = []
    drawn: dict[tuple[str, str], int] = {}
    for (kind, name), images in sorted(references.items()):
        product, normals = _normals(folder, normal_folder, kind)
        for number in range(count):
            choice = random.Random(derive_seed(seed, "plan", kind, name, number))
            reference = choice.choice(images)
            normal, mask = choice.choice(normals), choice.choice(images)
            where = places.find(
                normal_folder or folder,
                normal,
                product,
                mask,
                derive_seed(seed, "place", kind, name, number),
            )
            if isinstance(where, NotPlaced):
                left_out.append(f"{kind}/{name} {number}, on {normal.name}: {where.reason}")
                continue
            place = drawn.get((product, name), 0)
            drawn[product, name] = place + 1
            planned.append(
                Planned(
                    name=(product, name, f"{place:03d}"),
                    normal=normal,
                    reference=reference,
                    mask=where,
                    prompt=target_text(product, reference.phrase),
                    seed=derive_seed(seed, "noise", kind, name, number),
                )
            )
    if not planned:
        raise UserError(f"no defect found a place: {left_out[0]}")
    return planned, left_out


def _normals(
    folder: MvtecFolder, normal_folder: MvtecFolder | None, category: str
) -> tuple[str, tuple[Path, ...]]:
    source = normal_folder or folder
    product = category
    if product not in source.categories and len(source.categories) == 1:
        product = source.categories[0]
    if product not in source.categories:
        raise UserError(
            f"--normal {source.root}: no category {category!r}, nor is it a single category; "
            f"it has {', '.join(source.categories)}"
        )
    normals = source.normals(product)
    if not normals:
        raise UserError(
            f"{source.root}: {product} has no good images to draw on (train/good); "
            "name a folder that has some with --normal ROOT"
        )
    return product, normals
