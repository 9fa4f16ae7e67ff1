"""Condition dropout of Sec. 3.2.3, for classifier-free guidance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acontrol.config import DropoutConfig
from acontrol.seeding import derive_seed


def chances(seed: int, positions: Sequence[int]) -> Float[Tensor, " batch"]:
    """A uniform number in [0, 1] of each position, which decides what it loses.

    Cheap enough, at a few microseconds, to look far ahead.
    """
    drawn = [derive_seed(seed, "chance", int(position)) for position in positions]
    return torch.tensor(drawn, dtype=torch.float64) / 2**63


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


@dataclass(frozen=True)
class ConditionedSteps:
    """A run's samples without those whose C' is dropped, which have no gradient.

    The places of the dropped are filled with the positions that follow, so every batch has its
    full size. Step s covers the positions after step s - 1's last, up to its own last one.

    Attributes:
        positions: (steps * batch_size,) global positions whose C' stays, in order.
        shares: (steps,) the batch size over all positions that the step covers. Times the mean
            loss, it gives the gradient of a plain step over all of these.
    """

    positions: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float64]

    @classmethod
    def of_run(
        cls, seed: int, dropout: DropoutConfig, batch_size: int, steps: int
    ) -> "ConditionedSteps":
        """The steps of a run from its start; the same for any number of workers."""
        needed = batch_size * steps
        parts, count, first = [], 0, 0
        while count < needed:
            covered = range(first, first + max(1024, needed - count))
            dropped = dropped_conditions(chances(seed, covered), dropout)[1]
            parts.append(first + np.flatnonzero(~dropped.numpy()))
            count, first = count + len(parts[-1]), covered.stop
        positions = np.concatenate(parts)[:needed]
        ends = positions[batch_size - 1 :: batch_size] + 1
        return cls(positions, batch_size / np.diff(ends, prepend=0))
