"""The training loop, which depends on neither Ray nor MLflow."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from acontrol.config import DropoutConfig, RunConfig
from acontrol.data.features import FeatureBatch
from acontrol.data.stream import Batch, TrainingStream
from acontrol.method.model import AnomalyControl, Losses
from acontrol.train.engine import AdapterEngine
from acontrol.train.nonfinite import NonFiniteSteps


@dataclass
class StepTimer:
    """Shares of a step's time by phase, without gaps.

    On a CPU they come from the clock. On CUDA the host runs ahead of the device, so marks are
    events in its queue. Those of a step are read at the end of the next step, when the device
    has long passed them, so nothing waits. A phase's share is then device time, and "data" is
    its idle time.

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
        """End ``phase``, which began at the last mark."""
        self._marks.append((phase, self._now()))

    def shares(self) -> dict[str, float]:
        """Shares by phase of this step, on CUDA of the previous one (empty at the first)."""
        marks = self._before if self.device.type == "cuda" else self._marks
        spent: dict[str, float] = {}
        for (_, begun), (phase, ended) in pairwise(marks):
            spent[phase] = spent.get(phase, 0.0) + self._between(begun, ended)
        total = sum(spent.values())
        return {phase: seconds / total for phase, seconds in spent.items()} if total else {}

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begun: Any, ended: Any) -> float:
        return begun.elapsed_time(ended) if self.device.type == "cuda" else ended - begun


@dataclass(frozen=True)
class StepReport:
    """Results of one step, averaged over all ranks.

    Attributes:
        step: Optimizer steps taken, from 1.
        loss: Mean of Eq. (6) over the global batch; with ``runtime.skip_dropped`` all of its
            samples are conditioned.
        energy_before: Mean E of Eq. (3) before ASEA.
        energy_after: Mean E after ASEA.
        samples_per_s: Global throughput.
        shares: Shares of the step's time on this rank: "data", "forward", "backward" and
            "optimizer", which includes the exchange of losses; empty if not known yet.
        learning_rate: Rate of this step.
        skipped: Why the step was skipped, in one line; None if it was not.
    """

    step: int
    loss: float
    energy_before: float
    energy_after: float
    samples_per_s: float
    shares: Mapping[str, float]
    learning_rate: float
    skipped: str | None = None


@dataclass(frozen=True)
class StepMeans:
    """Scalars of one step, averaged over all ranks and passes.

    Attributes:
        loss: As in ``StepReport``.
        energy_before: As in ``StepReport``.
        energy_after: As in ``StepReport``.
        should_stop: Whether any rank was asked to stop.
        is_nonfinite: Whether any rank had a non-finite loss or gradient.
    """

    loss: float
    energy_before: float
    energy_after: float
    should_stop: bool
    is_nonfinite: bool


class StepSums:
    """Losses of one step, summed on the device over this rank's passes."""

    def __init__(self, device: torch.device):
        """Start at zero."""
        self.loss, self.energy_before, self.energy_after = torch.zeros(3, device=device)

    def add(self, losses: Losses) -> None:
        """Add a pass."""
        self.loss += losses.loss.detach().float()
        self.energy_before += losses.energy_before.mean().detach().float()
        self.energy_after += losses.energy_after.mean().detach().float()

    def average(self, engine: AdapterEngine, should_stop: bool) -> StepMeans:
        """Average over passes and ranks: the step's only collective and host read."""
        sums = (self.loss, self.energy_before, self.energy_after)
        passes = engine.config.optim.accumulation
        stop = self.loss.new_tensor(float(should_stop))
        loss, before, after, stopping, *nonfinite = engine.mean(
            [*(total / passes for total in sums), stop, *engine.nonfinite]
        )
        return StepMeans(loss, before, after, bool(stopping), any(nonfinite))


@dataclass(frozen=True)
class Validation:
    """Means over the held-out samples, each with its own fixed noise and timestep.

    Attributes:
        loss: Eq. (6), without condition dropout.
        energy: E of Eq. (3) after ASEA.
    """

    loss: float
    energy: float


class Observer(Protocol):
    """Callbacks around the steps. Every rank calls each method equally often."""

    def on_step(self, report: StepReport) -> None:
        """After a step."""

    def on_checkpoint(self, report: StepReport) -> None:
        """When a checkpoint is due."""

    def on_validation(self, step: int, result: Validation) -> None:
        """After a validation."""

    def on_samples(self, step: int) -> None:
        """When a grid of samples is due."""

    def should_stop(self) -> bool:
        """Whether this rank was asked to stop; one rank is enough."""

    def wants_checkpoint(self, step: int) -> bool:
        """Whether an extra checkpoint is due; the same on every rank."""


def train(
    model: AnomalyControl,
    batches: Iterator[Batch | FeatureBatch],
    engine: AdapterEngine,
    config: RunConfig,
    observer: Observer,
    *,
    start: int = 0,
    shares: npt.NDArray[np.float64] | None = None,
    validation: TrainingStream | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Train from step ``start`` to the config's last, or until a rank is asked to stop.

    A step with a non-finite loss or gradient on any rank is skipped by all ranks: step and
    position advance, nothing else changes. A checkpoint due then is deferred to the next step
    that is not skipped, so that the newest one is from before; only the last step and a
    request to stop write one anyway.

    Args:
        model: The assembly with the adapter that the engine wraps.
        batches: This rank's batches, starting with that of step ``start``.
        engine: The adapter under DeepSpeed.
        config: The run.
        observer: Callbacks.
        start: Steps already taken.
        shares: By what each step's loss is multiplied for its gradient (``ConditionedSteps``);
            by default 1.
        validation: The held-out samples, if any.
        clock: Seconds from any origin.

    Raises:
        NonFiniteLossError: On all ranks, if too many steps in a row were skipped.
    """
    last, passes = config.optim.steps, config.optim.accumulation
    timer = StepTimer(model.device, clock)
    nonfinite_steps = NonFiniteSteps(engine, config)
    due = False
    for step in range(start + 1, last + 1):
        begun = clock()
        timer.begin()
        sums = StepSums(model.device)
        keys, positions = list[str](), list[int]()
        for number in range(1, passes + 1):
            batch = next(batches)
            timer.ends("data")
            keys, positions = keys + batch.keys, positions + batch.positions
            losses = model(batch, engine.project)
            timer.ends("forward")
            loss = losses.loss if shares is None else losses.loss * float(shares[step - 1])
            engine.backward(loss, last=number == passes)
            timer.ends("backward")
            sums.add(losses)
        means = sums.average(engine, observer.should_stop())
        cause = nonfinite_steps.on_this_rank(keys, positions) if means.is_nonfinite else ""
        rate, updated = engine.step(skip=means.is_nonfinite)
        skipped = nonfinite_steps.record(
            step, cause, nonfinite=means.is_nonfinite, updated=updated
        )
        timer.ends("optimizer")
        elapsed = clock() - begun
        report = StepReport(
            step,
            means.loss,
            means.energy_before,
            means.energy_after,
            samples_per_s=config.optim.batch_size / elapsed,
            shares=timer.shares(),
            learning_rate=rate,
            skipped=skipped,
        )
        observer.on_step(report)
        nonfinite_steps.check()
        if validation is not None and (step == last or step % config.validation.every == 0):
            observer.on_validation(step, validate(model, validation, engine))
        due = due or observer.wants_checkpoint(step) or step % config.checkpoint.every == 0
        if (due and not skipped) or step == last or means.should_stop:
            observer.on_checkpoint(report)
            due = False
        if means.should_stop:
            return
        if step == last or (config.samples.every and step % config.samples.every == 0):
            observer.on_samples(step)


NO_DROPOUT = DropoutConfig(text=0, semantic=0, both=0)


@torch.no_grad()
def validate(
    model: AnomalyControl, stream: TrainingStream, engine: AdapterEngine
) -> Validation:
    """Mean losses over the held-out samples, of the weights that a checkpoint exports.

    Ranks share the samples and make equally many passes; padding after the last sample is not
    counted.
    """
    per_rank = engine.config.micro_batch_size
    passes = math.ceil(len(stream) / (per_rank * engine.world_size))
    loss, energy, count = torch.zeros(3, device=model.device)
    project = engine.exported_projection()
    for batch in stream.batches(0, per_rank, engine.rank, engine.world_size, passes):
        losses = model(batch, project, seed=stream.seed, dropout=NO_DROPOUT)
        counted = [row for row, at in enumerate(batch.positions) if at < len(stream)]
        loss += losses.per_sample[counted].sum()
        energy += losses.energy_after[counted].sum()
        count += len(counted)
    mean_loss, mean_energy, mean_count = engine.mean([loss, energy, count])
    return Validation(mean_loss / mean_count, mean_energy / mean_count)
