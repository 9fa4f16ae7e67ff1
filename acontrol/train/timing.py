"""Where a step's time goes, without making the host wait for the device."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch


@dataclass
class StepTimer:
    """Shares of a step by phase, which cover it without gaps.

    On a CPU they come from the clock. On CUDA the host runs ahead of the device, so marks are
    events in its queue, and those of a step are read at the end of the next one, when the
    step's own host read has long passed them: nothing waits for it. Then a phase's share is
    what the device spent on it, and "data" what it stood idle for.

    Attributes:
        device: Where the step runs.
        clock: Seconds from any origin.
    """

    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    _marks: list[tuple[str, Any]] = field(default_factory=list)
    _before: list[tuple[str, Any]] = field(default_factory=list)

    def begin(self) -> None:
        """Start a step."""
        self._before, self._marks = self._marks, []
        self.ends("")

    def ends(self, phase: str) -> None:
        """Mark that what happened since the last mark was ``phase``."""
        self._marks.append((phase, self._now()))

    def shares(self) -> dict[str, float]:
        """Shares by phase of this step, on CUDA of the one before; empty if there is none."""
        marks = self._before if self.device.type == "cuda" else self._marks
        spent: dict[str, float] = {}
        for (_, begun), (phase, ended) in pairwise(marks):
            spent[phase] = spent.get(phase, 0.0) + self._between(begun, ended)
        total = sum(spent.values())
        return {phase: one / total for phase, one in spent.items()} if total else {}

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begun: Any, ended: Any) -> float:
        return begun.elapsed_time(ended) if self.device.type == "cuda" else ended - begun
