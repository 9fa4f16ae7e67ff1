"""The training loop: a plain function that knows neither Ray nor MLflow."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch

from acontrol.config import DropoutConfig, RunConfig
from acontrol.data.features import FeatureBatch
from acontrol.data.stream import Batch, TrainingStream
from acontrol.method.model import AnomalyControl
from acontrol.train.engine import AdapterEngine
from acontrol.train.nonfinite import NonFiniteSteps


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


@dataclass(frozen=True)
class StepReport:
    """What one step gave, averaged over all ranks.

    Attributes:
        step: Optimizer steps taken, from 1.
        loss: Mean of Eq. (6) over the global batch; with ``runtime.skip_dropped`` over its
            conditioned samples, NaN if there are none.
        energy_before: Mean E of Eq. (3) before ASEA, over the same samples.
        energy_after: And after it.
        samples_per_s: Global throughput of this step.
        shares: Of the step's time on this rank, by phase: "data", "forward", "backward" and
            "optimizer", with the exchange of losses; empty where not known yet.
        learning_rate: Of this step.
        skipped: Why the step changed nothing, in a line; None: it did.
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
class Validation:
    """Means over the held-out samples, each with its own fixed noise and timestep.

    Attributes:
        loss: Of Eq. (6), without condition dropout.
        energy: E of Eq. (3) after ASEA.
    """

    loss: float
    energy: float


class Observer(Protocol):
    """What happens around the steps. Every rank calls each method equally often."""

    def on_step(self, report: StepReport) -> None:
        """After a step."""

    def on_checkpoint(self, report: StepReport) -> None:
        """When a checkpoint is due."""

    def on_validation(self, step: int, found: Validation) -> None:
        """After a validation."""

    def on_samples(self, step: int) -> None:
        """When a grid of samples is due."""

    def should_stop(self) -> bool:
        """Whether this rank knows of a wish to stop; one rank's is enough."""

    def wants_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is due beside the periodic ones; the same on every rank."""


def train(
    model: AnomalyControl,
    batches: Iterator[Batch | FeatureBatch],
    engine: AdapterEngine,
    config: RunConfig,
    observer: Observer,
    *,
    start: int = 0,
    validation: TrainingStream | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Train from step ``start`` to the config's last, or until a rank wishes to stop.

    A step with a non-finite loss or gradient on any rank is skipped by all together: step and
    position go on, and nothing else changes. A checkpoint that is due meanwhile waits for the
    next step that counts, so that the newest one is from before; only the last step and a wish
    to stop do not let it wait.

    Args:
        model: The assembly, whose adapter the engine wraps.
        batches: This rank's batches, the first of them for step ``start``.
        engine: Projects, differentiates and steps.
        config: The run.
        observer: Told of steps, due checkpoints and due samples.
        start: Steps already taken.
        validation: The held-out samples, if any.
        clock: Seconds from any origin.

    Raises:
        NonFiniteLossError: On every rank together, if too many steps in a row were skipped.
    """
    last, passes = config.optim.steps, config.optim.accumulation
    timer = StepTimer(model.device, clock)
    bad_numbers = NonFiniteSteps(engine, config)
    due = False
    for step in range(start + 1, last + 1):
        begun = clock()
        timer.begin()
        sums = [torch.zeros((), device=model.device) for _ in range(4)]
        keys, positions = list[str](), list[int]()
        for number in range(1, passes + 1):
            batch = next(batches)
            timer.ends("data")
            keys, positions = keys + batch.keys, positions + batch.positions
            losses = model(batch, engine.project)
            timer.ends("forward")
            engine.backward(losses.loss, last=number == passes)
            timer.ends("backward")
            # Over the whole batch, skipped samples too: ranks may have skipped unlike many.
            found = (
                losses.loss,
                losses.energy_before.sum() / len(batch.keys),
                losses.energy_after.sum() / len(batch.keys),
                losses.loss.new_full((), losses.share),
            )
            sums = [
                total + one.detach().float() for total, one in zip(sums, found, strict=True)
            ]
        # One collective and one host read a step.
        wish = torch.tensor(float(observer.should_stop()), device=model.device)
        loss, before, after, share, stop, *bad = engine.mean(
            [*(total / passes for total in sums), wish, *engine.bad]
        )
        seen = bad_numbers.on_this_rank(keys, positions) if any(bad) else ""
        rate, made = engine.step(skip=any(bad))
        skipped = bad_numbers.judge(step, seen, bad=any(bad), made=made)
        timer.ends("optimizer")
        elapsed = clock() - begun
        report = StepReport(
            step,
            loss / share if share else math.nan,
            before / share if share else math.nan,
            after / share if share else math.nan,
            samples_per_s=config.optim.batch_size / elapsed,
            shares=timer.shares(),
            learning_rate=rate,
            skipped=skipped,
        )
        observer.on_step(report)
        bad_numbers.check()
        if validation is not None and (step == last or step % config.validation.every == 0):
            observer.on_validation(step, validate(model, validation, engine))
        due = due or observer.wants_checkpoint(step) or step % config.checkpoint.every == 0
        if (due and not skipped) or step == last or stop:
            observer.on_checkpoint(report)
            due = False
        if stop:
            return
        if step == last or (config.samples.every and step % config.samples.every == 0):
            observer.on_samples(step)


NO_DROPOUT = DropoutConfig(text=0, semantic=0, both=0)


@torch.no_grad()
def validate(
    model: AnomalyControl, stream: TrainingStream, engine: AdapterEngine
) -> Validation:
    """Go through the held-out samples without training on them.

    Ranks share the samples and make equally many passes; where the samples do not divide, what
    comes after the last one is not counted.
    """
    per_rank = engine.config.micro_batch_size
    passes = math.ceil(len(stream) / (per_rank * engine.world_size))
    loss, energy, count = torch.zeros(3, device=model.device)
    for batch in stream.batches(0, per_rank, engine.rank, engine.world_size, passes):
        losses = model(batch, engine.project, seed=stream.seed, dropout=NO_DROPOUT)
        counted = [row for row, place in enumerate(batch.positions) if place < len(stream)]
        loss += losses.per_sample[counted].sum()
        energy += losses.energy_after[counted].sum()
        count += len(counted)
    mean_loss, mean_energy, mean_count = engine.mean([loss, energy, count])
    return Validation(mean_loss / mean_count, mean_energy / mean_count)
