"""Condition dropout of Sec. 3.2.3, for classifier-free guidance."""

from jaxtyping import Bool, Float
from torch import Tensor

from acontrol.config import DropoutConfig


def dropped_conditions(
    chance: Float[Tensor, " batch"], dropout: DropoutConfig
) -> tuple[Bool[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Which samples lose the target text and which lose C', from one uniform draw.

    Returns:
        Masks (text, semantic), True where the condition is dropped.
    """
    only_text = chance < dropout.text
    both = (chance >= dropout.text) & (chance < dropout.text + dropout.both)
    upper = dropout.text + dropout.both + dropout.semantic
    only_semantic = (chance >= dropout.text + dropout.both) & (chance < upper)
    return only_text | both, only_semantic | both
