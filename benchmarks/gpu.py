"""Every row of one GPU's table, in one command and one report.

    python -m benchmarks.gpu [--minutes 8] [--tiny]

Builds Stable Diffusion 1.5 and BLIP-2 at their real shapes with random weights on the device,
checks that activations are like a trained network's, compares bfloat16 with float32, then
times: a training step at batch 64 and 8 (our variants and the public trainer's,
benchmarks/bench_step.py), its memory and profile, ASEA, drawing, the built-in preset through
`launch.train` and Ray, the loader, drawing and a step compiled; last come the tests that need
a GPU. Stages that do not fit into the minutes are left out and listed; what was
measured is written after each stage. Ratios are within the same run, cases interleaved. --tiny
runs everything on the built-in base, on a CPU too: a check of the command, not a measurement.

Writes benchmarks/results/DATE_gpu_HARDWARE.{json,md}, and what the processes and Ray printed
into logs/TIME beside them. Ends with 1 if a stage failed.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from acontrol.config import BaseConfig
from acontrol.networks.load import BaseModels, load_base, quieten
from benchmarks import gpu_drawing, gpu_ray, gpu_training
from benchmarks.bench_step import join_alone
from benchmarks.full_size import random_sd15
from benchmarks.report import RESULTS, write_report


@dataclass
class Bench:
    """What the stages share.

    Attributes:
        base: The frozen networks.
        device: Where.
        tiny: Whether they are the built-in ones.
        batches: Training's batch sizes, the larger first.
        rounds: Most timed runs of a case.
        deadline: When to stop, by ``time.monotonic``.
        rows: The table so far.
        facts: What else goes into the report, by stage.
        times: Seconds of earlier stages' cases, by (batch size, case).
        logs: Folder of what other processes print.
        reached_tflop_s: What a large product reached on the device in this run.
        save: Writes the report so far.
        failed: Names of the stages that failed.
    """

    base: BaseModels
    device: str
    tiny: bool
    batches: tuple[int, int]
    rounds: int
    deadline: float
    logs: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    times: dict[tuple[int, str], float] = field(default_factory=dict)
    reached_tflop_s: float | None = None
    save: Callable[[], object] = lambda: None
    failed: list[str] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def mfu(self, tflop: float, per_s: float) -> float | None:
        """Share of the rate of a large product in this run; None without, and if tiny."""
        reached = self.reached_tflop_s
        return None if reached is None or self.tiny else round(tflop * per_s / reached, 3)

    def row(
        self,
        metric: str,
        value: float,
        goal: str = "",
        stretch: str = "",
        unit: str = "",
        **more: Any,
    ) -> None:
        """Add a row; a goal is a bound such as "<= 0.65"."""
        met = "" if self.tiny or not goal else ("yes" if _holds(value, goal) else "no")
        shown = float(f"{value:.4g}")
        note = ", ".join(f"{name} {value}" for name, value in more.items() if value is not None)
        self.rows.append(
            {
                "metric": metric,
                "value": f"{shown:g}{' ' + unit if unit else ''}",
                "goal": goal,
                "stretch": stretch,
                "met": met,
                "note": note,
            }
        )
        print(f"  {metric}: {shown:g} {unit} {note}", flush=True)


def _holds(value: float, goal: str) -> bool:
    sign, bound = goal.split()[:2]
    return value <= float(bound) if sign == "<=" else value >= float(bound)


# Each with the seconds that it needs on a large card, compilation included.
PLAN: dict[str, tuple[Callable[[Any], None], float]] = {
    "sanity": (gpu_training.sanity, 5),
    "numerics": (gpu_training.numerics, 10),
    "training, large batch": (lambda bench: gpu_training.training(bench, bench.batches[0]), 60),
    "memory and profile": (gpu_training.profile, 20),
    "ASEA": (gpu_training.asea_overhead, 120),
    "drawing": (gpu_drawing.drawing, 60),
    "through Ray": (gpu_ray.through_ray, 120),
    "training, small batch": (lambda bench: gpu_training.training(bench, bench.batches[1]), 30),
    "loader": (gpu_drawing.loader, 20),
    "drawing, compiled": (gpu_drawing.compiled, 60),
    "training, compiled": (gpu_training.compiled, 150),
    "GPU tests": (gpu_ray.gpu_tests, 300),
}


def run(bench: Bench) -> Iterator[str]:
    """Run the plan; yields the stages that were left out, with the reason."""
    for name, (stage, needed_s) in PLAN.items():
        if bench.left_s < needed_s and not bench.tiny:
            yield f"{name}: {max(bench.left_s, 0):.0f} s were left"
            continue
        print(f"{name} ({bench.left_s:.0f} s left)", flush=True)
        try:
            stage(bench)
        except (torch.OutOfMemoryError, gpu_ray.ProcessError) as error:
            bench.failed.append(name)
            yield f"{name}: {str(error).splitlines()[0]}"
        bench.save()  # A run that is cut off keeps what it measured.
        gc.collect()
        if bench.device == "cuda":
            torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; returns 1 if a stage failed, however much was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true", help="the built-in base")
    parser.add_argument("--batch", type=int, nargs=2, default=(64, 8))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    begun = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("no GPU here; --tiny checks the command on a CPU")
    quieten()
    if not torch.distributed.is_initialized():
        join_alone()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    base = load_base(BaseConfig(), device, dtype) if args.tiny else random_sd15(device, dtype)
    bench = Bench(
        base,
        device,
        args.tiny,
        tuple(args.batch),
        args.rounds,
        begun + 60 * args.minutes,
        args.out / "logs" / f"{datetime.now(UTC):%Y-%m-%d_%H%M%S}",
    )
    left_out: list[str] = []

    def save(*, show: bool = False) -> Path:
        settings = {
            "minutes": args.minutes,
            "tiny": args.tiny,
            "batches": list(args.batch),
            "precision": str(dtype).removeprefix("torch."),
            "took_s": round(time.monotonic() - begun),
            "left_out": left_out,
            **bench.metadata,
        }
        title = __doc__.splitlines()[0]
        return write_report("gpu", bench.rows, settings, title, args.out, show=show)

    bench.save = save
    for line in run(bench):
        print(f"left out: {line}")
        left_out.append(line)
    save(show=True)
    if bench.failed:
        print(f"failed: {', '.join(bench.failed)} (logs in {bench.logs})")
    return int(bool(bench.failed))


if __name__ == "__main__":
    sys.exit(main())
