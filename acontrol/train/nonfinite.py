"""Steps whose numbers are none: on which samples, and how many in a row."""

import torch.distributed as dist

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.train.engine import AdapterEngine


class NonFiniteLossError(UserError):
    """Too many steps in a row had a loss or a gradient that is no number; names the samples.

    An error of the user's, since a restart would meet the same numbers again.
    """


class NonFiniteSteps:
    """What the ranks know together of the steps that they skip.

    Collective where a step was skipped, and silent otherwise.
    """

    def __init__(self, engine: AdapterEngine, config: RunConfig):
        """Start with no step skipped."""
        self.engine, self.config = engine, config
        self.in_a_row = 0
        self.last = ""

    def on_this_rank(self, keys: list[str], positions: list[int]) -> str:
        """What was no number on this rank, with its samples; nothing if all were.

        Reads from the device once more, as nothing hurries in a step that is skipped.
        """
        loss, gradient = (bool(flag) for flag in self.engine.bad)
        if not loss and not gradient:
            return ""
        return (
            f"the {'loss' if loss else 'gradient'} of rank {self.engine.rank} is not finite "
            f"(samples {', '.join(keys)}; positions {positions})"
        )

    def judge(self, step: int, seen: str, *, bad: bool, made: bool) -> str | None:
        """Say why a step was skipped, the same on every rank; None if it counts.

        Args:
            step: Which.
            seen: What this rank had that was no number.
            bad: Whether any rank had.
            made: Whether the update was made.
        """
        # In float16 a gradient without end is the loss scale's affair, not the samples'.
        if made or (not bad and self.config.runtime.precision == "float16"):
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        said = [""] * self.engine.world_size
        dist.all_gather_object(said, seen)
        cause = "; ".join(filter(None, said)) or "the averaged gradient's norm is not finite"
        self.last = f"step {step} skipped by all ranks: {cause}; seed {self.config.seed}"
        return self.last

    def check(self) -> None:
        """End the run after too many in a row.

        Raises:
            NonFiniteLossError: On every rank together.
        """
        limit = self.config.optim.max_skipped
        if self.in_a_row > limit:
            raise NonFiniteLossError(
                f"{self.in_a_row} steps in a row were skipped, optim.max_skipped is {limit}: "
                "look at the samples, or start anew with a lower optim.learning_rate. "
                f"{self.last}"
            )
