"""Steps skipped for a non-finite loss or gradient: their samples, how many in a row."""

import torch.distributed as dist

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.messages import counted
from acontrol.train.engine import AdapterEngine


class NonFiniteLossError(UserError):
    """Too many steps in a row had a non-finite loss or gradient; names the samples.

    A UserError, since a restart would compute the same again.
    """


class NonFiniteSteps:
    """The skipped steps, shared by all ranks. Collective only where a step was skipped."""

    def __init__(self, engine: AdapterEngine, config: RunConfig):
        """Start with no step skipped."""
        self.engine, self.config = engine, config
        self.in_a_row = 0
        self.last = ""

    def on_this_rank(self, keys: list[str], positions: list[int]) -> str:
        """What was non-finite on this rank, with its samples; "" if nothing was.

        One more read from the device, which does not matter in a skipped step.
        """
        loss, gradient = (bool(flag) for flag in self.engine.nonfinite)
        if not loss and not gradient:
            return ""
        return (
            f"the {'loss' if loss else 'gradient'} of rank {self.engine.rank} is non-finite "
            f"(samples {', '.join(keys)}; positions {positions})"
        )

    def record(self, step: int, cause: str, *, nonfinite: bool, updated: bool) -> str | None:
        """Why the step was skipped, the same on every rank; None if it was not.

        Args:
            step: Number of the step.
            cause: From ``on_this_rank``.
            nonfinite: Whether any rank had a non-finite loss or gradient.
            updated: Whether the weights were updated.
        """
        # In float16 an infinite gradient comes from the loss scale, not from the samples.
        if updated or (not nonfinite and self.config.runtime.precision == "float16"):
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        causes = [""] * self.engine.world_size
        dist.all_gather_object(causes, cause)
        text = "; ".join(filter(None, causes)) or "the averaged gradient's norm is non-finite"
        self.last = f"step {step} skipped by all ranks: {text}; seed {self.config.seed}"
        return self.last

    def check(self) -> None:
        """End the run after too many in a row.

        Raises:
            NonFiniteLossError: On all ranks.
        """
        limit = self.config.optim.max_skipped
        if self.in_a_row > limit:
            raise NonFiniteLossError(
                f"{counted(self.in_a_row, 'step was', 'steps in a row were')} skipped, "
                f"optim.max_skipped is {limit}: look at the samples, or start again with a "
                f"lower optim.learning_rate. {self.last}"
            )
