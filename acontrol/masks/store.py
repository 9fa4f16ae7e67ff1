"""Learned masks on disk.

    MASKS/<category>/<defect>/learned.json         `MaskCard`
    MASKS/<category>/<defect>/vectors.safetensors  the embedding, (vector, dim)
    MASKS/<category>/<defect>/masks/000.png        masks; unwanted ones may be deleted
    MASKS/<category>/<defect>/sheet.png            training masks and drawn masks

Each <category>/<defect> folder is written elsewhere and renamed, so it is always complete.
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

from acontrol.config import THIRD
from acontrol.data.images import read_mask
from acontrol.data.listing import by_id, is_junk, numbered
from acontrol.data.split import in_words
from acontrol.errors import UserError, explain
from acontrol.masks.settings import MaskCard
from acontrol.masks.shape import Mask

CARD, VECTORS, MASKS, SHEET = "learned.json", "vectors.safetensors", "masks", "sheet.png"


def write_learned(
    root: Path, card: MaskCard, vectors: Tensor, masks: Sequence[Mask], sheet: Image.Image
) -> Path:
    """Write the masks of one category and defect."""
    folder = root / card.category / card.defect
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / MASKS).mkdir(parents=True)
    save_file({"vectors": vectors.detach().cpu().contiguous()}, partial / VECTORS)
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(partial / MASKS / f"{numbered(number, len(masks))}.png")
    sheet.save(partial / SHEET)
    (partial / CARD).write_text(card.model_dump_json(indent=1) + "\n")
    os.rename(partial, folder)
    return folder


def finished(root: Path) -> list[Path]:
    """The cards of all categories and defects, sorted; a folder being written has none."""
    return sorted(file for file in root.glob(f"*/*/{CARD}") if not is_junk(file.parent.name))


def read_card(root: Path, category: str, defect: str) -> MaskCard | None:
    """The card of a category and defect; None if there are no learned masks.

    Raises:
        UserError: If the card is malformed.
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
    split_digest: str = THIRD,
) -> dict[str, tuple[Path, Mask]]:
    """The masks of a category and defect, with their files, by name.

    Args:
        root: Output folder of launch.masks.
        category: The category.
        defect: The defect.
        base_digest: The adapter's base; None accepts masks of any.
        split: The split that the adapter was trained on.
        split_digest: The record of that split.

    Raises:
        UserError: If there are none, or they were learned on another base or from test images.
    """
    card = read_card(root, category, defect)
    if card is None:
        others = sorted(file.parent.relative_to(root).as_posix() for file in finished(root))
        raise UserError(
            f"--masks-path {root}: no masks learned for {category}/{defect}; it has "
            f"{', '.join(others[:8]) or 'none'}; learn them with acontrol masks"
        )
    if base_digest is not None and card.base_digest != base_digest:
        raise UserError(
            f"--masks-path {root}: {category}/{defect} was learned on another base "
            f"({card.base.path}) than the adapter's; learn it on that with "
            "acontrol masks --base"
        )
    if split not in (card.split, "all"):
        raise UserError(
            f"--masks-path {root}: {category}/{defect} was learned with --split {card.split}, "
            f"and references are of split {split}: a detector's test would have been seen"
        )
    if split_digest != card.split_digest:
        raise UserError(
            f"--masks-path {root}: {category}/{defect} comes from "
            f"{in_words(card.split_digest)}, and the data from {in_words(split_digest)}: learn "
            "it again with acontrol masks and the same --split-file"
        )
    files = sorted(by_id(root / category / defect / MASKS).values())
    if not files:
        raise UserError(f"--masks-path {root}: {category}/{defect}/{MASKS} holds no image")
    size = (card.resolution, card.resolution)
    return {file.name: (file, np.asarray(read_mask(file, size))) for file in files}
