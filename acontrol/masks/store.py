"""Learned masks on disk.

    MASKS/<category>/<defect>/learned.json         what they are (`MaskCard`)
    MASKS/<category>/<defect>/vectors.safetensors  the embedding, (vector, dim)
    MASKS/<category>/<defect>/masks/000.png        masks; those not wanted may be removed
    MASKS/<category>/<defect>/sheet.png            the training masks and what was drawn

A category's and defect's folder appears whole, by a rename.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from acontrol.data.images import read_mask
from acontrol.errors import UserError, explain
from acontrol.masks.settings import MaskCard
from acontrol.masks.shape import Mask

CARD, VECTORS, MASKS, SHEET = "learned.json", "vectors.safetensors", "masks", "sheet.png"


def write_learned(
    root: Path, card: MaskCard, vectors: Tensor, masks: Sequence[Mask], sheet: Image.Image
) -> Path:
    """Write what was learned for one category and defect."""
    folder = root / card.category / card.defect
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / MASKS).mkdir(parents=True)
    save_file({"vectors": vectors.detach().cpu().contiguous()}, partial / VECTORS)
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(partial / MASKS / f"{number:03d}.png")
    sheet.save(partial / SHEET)
    (partial / CARD).write_text(card.model_dump_json(indent=1) + "\n")
    os.rename(partial, folder)
    return folder


def read_card(root: Path, category: str, defect: str) -> MaskCard | None:
    """What was learned for a category and defect; None if nothing.

    Raises:
        UserError: If its JSON is not ours.
    """
    file = root / category / defect / CARD
    if not file.is_file():
        return None
    try:
        return MaskCard.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error)}") from error


def read_learned(
    root: Path,
    category: str,
    defect: str,
    *,
    base_digest: str | None,
    split: Literal["train", "test", "all"],
) -> dict[str, tuple[Path, Mask]]:
    """The masks of a category and defect, with their files, by name.

    Args:
        root: What launch.masks wrote.
        category: The category.
        defect: The defect.
        base_digest: Of the base that draws; None takes masks of any.
        split: The part of the data that the adapter was trained on.

    Raises:
        UserError: If nothing was learned for it, or on another base, or from images that
            are kept for tests.
    """
    card = read_card(root, category, defect)
    if card is None:
        learned = sorted(
            file.parent.relative_to(root).as_posix() for file in root.glob(f"*/*/{CARD}")
        )
        raise UserError(
            f"--masks-path {root}: no masks learned for {category}/{defect}; it has "
            f"{', '.join(learned[:8]) or 'none'}; learn them with python -m launch.masks"
        )
    if base_digest is not None and card.base_digest != base_digest:
        raise UserError(
            f"--masks-path {root}: {category}/{defect} was learned on another base "
            f"({card.base.path}) than the adapter's; learn it on that with launch.masks --base"
        )
    if split not in (card.split, "all"):
        raise UserError(
            f"--masks-path {root}: {category}/{defect} was learned with --split {card.split}, "
            f"and references are of split {split}: a detector's test would have been seen"
        )
    files = sorted((root / category / defect / MASKS).glob("*.png"))
    if not files:
        raise UserError(f"--masks-path {root}: {category}/{defect}/{MASKS} holds no .png")
    size = (card.resolution, card.resolution)
    return {file.name: (file, np.asarray(read_mask(file, size))) for file in files}
