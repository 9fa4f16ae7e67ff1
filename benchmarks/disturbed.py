"""A small real training run with faults injected by a plan.

    python -m benchmarks.disturbed PLAN.json

The worker here wraps acontrol's own: it records every step, and injects the plan's faults into
its own process. Each fault happens once, however often the step is repeated.
"""

import argparse
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from acontrol.config import RunConfig, Settings
from acontrol.errors import UserError
from acontrol.runs.record import Launch
from acontrol.train.fit import run_worker

FaultKind = Literal["kill", "stall", "hang", "corrupt", "full"]


class Fault(Settings):
    """A fault, and when it happens to which worker.

    Attributes:
        kind: "kill" (SIGKILL), "stall" (SIGSTOP), "hang" (waits for ever), "corrupt" (flips a
            bit of the newest checkpoint, then SIGKILL) or "full" (no space left on the disk).
        rank: Of the worker.
        step: Once it has taken this optimizer step.
        phase: After the step, in the middle of saving, or at the report of the checkpoint.
    """

    kind: FaultKind
    rank: int = Field(ge=0)
    step: int = Field(ge=1)
    phase: Literal["step", "save", "report"] = "step"


class Plan(Settings):
    """A run and its faults.

    Attributes:
        config: The run.
        notes: Folder for the workers' records, and for markers of faults that have happened.
        faults: In any order.
    """

    config: RunConfig
    notes: str
    faults: tuple[Fault, ...] = ()


class Disturber:
    """Injects the plan's faults inside one worker."""

    def __init__(self, plan: Plan, launch: Launch, rank: int):
        """Select the faults of this rank."""
        self.notes, self.launch, self.rank = Path(plan.notes), launch, rank
        self.faults = [
            (number, fault) for number, fault in enumerate(plan.faults) if fault.rank == rank
        ]
        self.keys: list[str] = []
        self.step = 0
        self.file = self.notes / f"steps-{rank}-{os.getpid()}-{time.time_ns()}.jsonl"

    def note(self, step: int, loss: float) -> None:
        """Record a step and its samples."""
        self.step = step
        with self.file.open("a") as stream:
            line = {"step": step, "rank": self.rank, "loss": loss, "keys": self.keys}
            stream.write(json.dumps(line) + "\n")
        self.keys = []

    def reach(self, phase: str) -> None:
        """Inject the faults that are due in this phase of the step."""
        for number, fault in self.faults:
            if (fault.step, fault.phase) == (self.step, phase) and self._first(number):
                self._do(fault)

    def _first(self, number: int) -> bool:
        try:
            (self.notes / f"happened-{number}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _do(self, fault: Fault) -> None:
        if fault.kind == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if fault.kind == "hang":
            threading.Event().wait()
        if fault.kind == "corrupt":
            turn_a_byte(self.launch.run)
        number = signal.SIGSTOP if fault.kind == "stall" else signal.SIGKILL
        os.kill(os.getpid(), number)


def turn_a_byte(run: Path) -> None:
    """Damage the newest finished checkpoint of a run, if it has two."""
    checkpoints = sorted(
        (path.parent for path in run.glob("launches/*/bundle-*/manifest.json")),
        key=lambda path: path.name,
    )
    if len(checkpoints) > 1:
        file = checkpoints[-1] / "moments.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def disturbed_worker(plan: str, settings: dict[str, Launch]) -> None:
    """Ray Train's entry into a worker: acontrol's own, wrapped."""
    import ray.train

    from acontrol.data.stream import TrainingStream
    from acontrol.runs import storage
    from acontrol.train.callbacks import RunObserver
    from acontrol.train.loop import StepReport

    rank = ray.train.get_context().get_world_rank()
    disturber = Disturber(Plan.model_validate_json(plan), settings["launch"], rank)
    whole: dict[str, Callable[..., Any]] = {
        "on_step": RunObserver.on_step,
        "batches": TrainingStream.batches,
        "write": storage.write,
        "report": ray.train.report,
    }

    def on_step(observer: RunObserver, report: StepReport) -> None:
        whole["on_step"](observer, report)
        disturber.note(report.step, report.loss)
        disturber.reach("step")

    def batches(*args: Any, **more: Any) -> Iterator[Any]:
        for batch in whole["batches"](*args, **more):
            disturber.keys += batch.keys
            yield batch

    def write(file: Path, content: bytes) -> None:
        if file.name == "moments.safetensors":
            disturber.reach("save")
        whole["write"](file, content)

    def report(*args: Any, **more: Any) -> None:
        disturber.reach("report")
        whole["report"](*args, **more)

    RunObserver.on_step = on_step  # type: ignore[method-assign]
    TrainingStream.batches = batches  # type: ignore[method-assign]
    storage.write = write
    ray.train.report = report
    run_worker(settings)


def main() -> None:
    """Run the plan; exits like launch.train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    plan = parser.parse_args().plan.read_text()
    from acontrol.train.driver import TrainingStoppedError, run_training

    config = Plan.model_validate_json(plan).config
    try:
        run_training(config, worker=partial(disturbed_worker, plan))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingStoppedError as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(stop.status)


if __name__ == "__main__":
    main()
