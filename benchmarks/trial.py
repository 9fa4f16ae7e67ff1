"""A run with faults: repeat its command until it is done, and compare it with a calm one."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import psutil

from acontrol.config import RunConfig
from acontrol.runs.record import RunRecord
from acontrol.train.checkpoint import newest_checkpoint
from benchmarks.disturbed import Fault, Plan
from launch.train import read_config

ATTEMPTS = 12  # Of the same command.
Step = tuple[int, int]  # Rank and step.


@dataclass
class Trial:
    """The outcome of a run.

    Attributes:
        run: Its folder.
        happened: The faults that happened, with their times in seconds.
        statuses: Exit status of each attempt.
        errors: The last line that each attempt printed.
    """

    run: Path
    happened: list[tuple[float, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def config_of(
    run: Path,
    shards: Path,
    *,
    stage: int,
    steps: int,
    every: int,
    uri: str | None = None,
    more: Sequence[object] = (),
) -> RunConfig:
    """Two workers on the built-in base, restarted without end; ``more`` options win."""
    options: list[object] = [
        *("tiny", "--output", run, "--data.shards", shards, "--zero.stage", stage),
        *("--optim.steps", steps, "--optim.batch-size", 4, "--checkpoint.every", every),
        *("--cluster.num-workers", 2, "--cluster.max-failures", -1, "--cluster.hang-s", 15),
        *("--samples.every", 0, "--samples.count", 1, "--samples.steps", 1),
    ]
    options += ["--tracking.uri", uri] if uri else []
    options += more
    return read_config([str(option) for option in options])


def carry_out(
    folder: Path,
    config: RunConfig,
    faults: tuple[Fault, ...] = (),
    driver_dies_after_s: float | None = None,
) -> Trial:
    """Give the command again and again until the run is done.

    Args:
        folder: For plan and notes.
        config: The run.
        faults: What happens to its workers.
        driver_dies_after_s: Seconds after the first step until the driver and all its
            processes are killed, once.
    """
    notes = folder / "notes"
    notes.mkdir(parents=True)
    plan = folder / "plan.json"
    plan.write_text(
        Plan(config=config, notes=str(notes), faults=faults).model_dump_json(indent=1)
    )
    trial = Trial(Path(config.output or ""))
    for _ in range(ATTEMPTS):
        log = (folder / f"log-{len(trial.statuses)}.txt").open("w+")
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.disturbed", str(plan)],
            stdout=log,
            stderr=log,
            env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
        )
        if driver_dies_after_s is not None:
            _wait_for_a_step(notes, process)
            time.sleep(driver_dies_after_s)
            driver_dies_after_s = None
            if process.poll() is None:
                _kill_all(process)
                (notes / "happened-driver").touch()
        trial.statuses.append(process.wait())
        if trial.statuses[-1] not in (0, 1, 2, -signal.SIGKILL):
            break
        log.seek(0)
        trial.errors.append((log.read().strip().splitlines() or [""])[-1])
        log.close()
        if trial.statuses[-1] == 0:
            break
    for marker in notes.glob("happened-*"):
        number = marker.name.removeprefix("happened-")
        name = faults[int(number)].kind if number.isdigit() else number
        trial.happened.append((marker.stat().st_mtime, name))
    trial.happened.sort()
    return trial


def _wait_for_a_step(notes: Path, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None and not list(notes.glob("steps-*")):
        time.sleep(0.1)


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        try:
            os.kill(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def steps_noted(notes: Path) -> dict[Step, list[tuple[float, tuple[str, ...]]]]:
    """Loss and sample keys of each step of each rank, once per execution."""
    steps = defaultdict(list)
    for file in sorted(notes.glob("steps-*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            key = record["rank"], record["step"]
            steps[key].append((record["loss"], tuple(record["keys"])))
    return dict(steps)


def steps_redone(notes: Path) -> list[tuple[float, int]]:
    """For each start after the first: when, and how many steps rank 0 did again."""
    begun = []
    for file in notes.glob("steps-0-*.jsonl"):
        steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
        started = int(file.stem.rpartition("-")[2]) / 1e9
        begun.append((started, steps[0], steps[-1]))
    begun.sort()
    return [(after[0], before[2] - after[1] + 1) for before, after in itertools.pairwise(begun)]


def bytes_wrong(run: Path, reference: Path) -> int:
    """Number of bytes that differ in the last checkpoints' weights and moments."""
    checkpoints = [newest_checkpoint(folder) for folder in (run, reference)]
    wrong = 0
    for name in ("adapter/diffusion_pytorch_model.safetensors", "moments.safetensors"):
        ours, theirs = (
            (checkpoint.path / name).read_bytes() if checkpoint else b""
            for checkpoint in checkpoints
        )
        wrong += sum(a != b for a, b in zip(ours, theirs, strict=False))
        wrong += abs(len(ours) - len(theirs))
    return wrong


def losses_in_mlflow(run: Path, uri: str | None = None) -> list[tuple[int, float]]:
    """Every loss of a run in MLflow, in order, with repetitions."""
    record = RunRecord.read(run)
    assert record is not None
    client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{run / 'mlflow.db'}")
    history = client.get_metric_history(record.mlflow_run, "loss")
    return sorted((metric.step, metric.value) for metric in history)
