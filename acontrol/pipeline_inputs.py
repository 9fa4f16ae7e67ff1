"""What the pipeline is given, and how a drawing goes back into its normal image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.config import AdapterCard
from acontrol.data.framing import fit, region


@dataclass(frozen=True)
class Conditions:
    """What guides a batch, made once for all its steps.

    Attributes:
        text: (batch, token, dim) embeddings of the target texts.
        semantic: (batch, query, fused) what the adapter makes of C': K' and V' of all layers.
        empty_text: (1, token, dim) of the empty text, for the unconditional branch.
        empty_semantic: (1, query, fused) of C' = 0, as condition dropout trained.
    """

    text: Tensor
    semantic: Tensor
    empty_text: Tensor
    empty_semantic: Tensor


def check_lists(lists: dict[str, Any]) -> None:
    """Raise ValueError unless every list has one entry a prompt and every mask fits."""
    count = len(lists["prompt"])
    if count == 0:
        raise ValueError("need at least one prompt, got an empty list")
    for name, values in lists.items():
        if isinstance(values, str) or (values is not None and len(values) != count):
            raise ValueError(f"need a list of {count} {name}, one a prompt, got {values!r}")
    if (lists["image"] is None) != (lists["mask_image"] is None):
        raise ValueError("image and mask_image go together: give both or neither")
    for one, mask in [
        *zip(lists["reference_image"], lists["reference_mask"], strict=True),
        *zip(lists["image"] or [], lists["mask_image"] or [], strict=True),
    ]:
        if one.size != mask.size:
            raise ValueError(f"an image of {one.size} has a mask of {mask.size}")
        if mask.getbbox() is None:
            raise ValueError("a mask is empty: it must be non-zero where the defect is")


def bits(masks: Sequence[Image.Image]) -> list[Image.Image]:
    """Masks of any mode as 1-bit images: set where any colour channel is above zero."""
    return [Image.fromarray(np.asarray(mask.convert("RGB")).any(axis=2)) for mask in masks]


def seen_by_vlm(
    image: Sequence[Image.Image], mask: Sequence[Image.Image], size: int, card: AdapterCard
) -> tuple[Tensor, Tensor]:
    """References and their masks as the vision tower takes them, in the card's view."""
    pairs = [
        region(one.convert("RGB"), where)
        if card.reference_view == "region"
        else (one.convert("RGB"), where)
        for one, where in zip(image, mask, strict=True)
    ]
    fitted = [fit(*pair, size) for pair in pairs]
    return torch.stack([one for one, _ in fitted]), torch.stack([where for _, where in fitted])


def put_back(drawn: Image.Image, normal: Image.Image, mask: Image.Image | None) -> Image.Image:
    """Bring a drawing to its normal image's size; with a mask, keep the pixels outside it."""
    if drawn.size != normal.size:
        drawn = drawn.resize(normal.size, Image.Resampling.BICUBIC)
    if mask is None:
        return drawn
    result = normal.convert("RGB")
    result.paste(drawn, mask=mask)
    return result
