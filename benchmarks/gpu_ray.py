"""Stages of ``benchmarks.gpu`` that are other processes: training through Ray, and tests."""

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import psutil
import torch

from acontrol.config import BaseConfig, RunConfig
from acontrol.data.builtin import write_dataset
from acontrol.networks.load import load_base
from acontrol.presets import PRESETS
from acontrol.runs.record import RunRecord
from benchmarks.bench_step import Bench as StepBench
from benchmarks.bench_step import random_batch
from benchmarks.gpu_training import config_of, medians

BATCH = 8
STEPS = 60
WARMUP = 20  # Steps that are not timed.
LIMIT_S = 240.0  # Of the training; most of it is starting Ray and importing.
# What `join_alone` has set, which the workers of another process must not find.
_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Where Ray writes by default.
_LOGS = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), "ray/session_latest/logs")


class ProcessError(Exception):
    """A process failed or did not end in time."""


def through_ray(bench: Any) -> None:
    """`launch.train tiny` to its end with one worker, and what Ray and the loop add to a step.

    The built-in base's step is short, so what is added is measured there, as its difference
    to a bare step, and said as a share of the full size's.

    Raises:
        ProcessError: If it fails, or does not end in time; Ray's logs are kept.
    """
    config = config_of(bench.device, BATCH, tiny=True)
    preset = PRESETS["tiny"]  # What launch.train takes: no ASEA steps.
    config = config.model_copy(update={"asea": preset.asea, "csm": preset.csm})
    with tempfile.TemporaryDirectory() as place:
        limit_s = LIMIT_S if bench.tiny else min(LIMIT_S, bench.left_s)
        seconds, per_s, losses = _train(Path(place), config, limit_s, bench.logs)
    bench.row("launch.train tiny through Ray, in all", seconds, unit="s", steps=len(losses))
    bench.metadata["losses_through_ray"] = {"first": losses[0], "last": losses[-1]}
    base = (
        bench.base
        if bench.tiny
        else load_base(BaseConfig(), bench.device, bench.base.unet.dtype)
    )
    steps = StepBench(base, random_batch(BATCH, 64, 64), config, bench.device)
    bare = medians(bench, {"bare": steps.ours(features=False)})["bare"]
    added = BATCH / per_s - bare
    bench.row(f"through Ray / bare, tiny, online, batch {BATCH}", BATCH / per_s / bare)
    bench.row("what Ray, DeepSpeed and data add to a step", 1000 * added, unit="ms")
    full = bench.times.get((bench.batches[0], "ours, features"))
    if full is not None and not bench.tiny:
        ratio = 1 + added / full
        note = f"with data of {BATCH} small images"
        bench.row("DeepSpeed + Ray / bare, full size, by what is added", ratio, of=note)


def gpu_tests(bench: Any) -> None:
    """Two of the tests that need a GPU, a kill and the timer; without one they skip.

    Raises:
        ProcessError: If one fails, or they do not end in time.
    """
    # One kill test of five: each starts a run three times.
    files = ["tests/train", "tests/launch/test_kills.py"]
    command = ["pytest", "-q", "-m", "gpu", "-k", "one_gpu[1-float32] or real_card", *files]
    text = run_module(command, LIMIT_S if bench.tiny else bench.left_s, bench.logs)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", text)}
    bench.row("GPU tests passed", counts.get("passed", 0), skipped=counts.get("skipped"))


def _train(
    place: Path, config: RunConfig, limit_s: float, logs: Path
) -> tuple[float, float, list[float]]:
    """Seconds in all, median images/s after the warm-up, and the losses."""
    write_dataset(place / "data", num_good=2, num_good_test=1, num_defects=6)
    run, uri = place / "run", f"sqlite:///{place / 'mlflow.db'}"
    options = [
        *("--data.shards", place / "shards", "--output", run, "--cluster.num-workers", 1),
        *("--cluster.use-gpu", torch.cuda.is_available(), "--optim.steps", STEPS),
        *("--runtime.precision", config.runtime.precision),
        *("--optim.batch-size", BATCH, "--samples.every", 0, "--samples.count", 1),
        *("--samples.steps", 1, "--checkpoint.every", STEPS, "--tracking.uri", uri),
    ]
    run_module(["launch.shard", place / "data", "--out", place / "shards"], limit_s, logs)
    begun = time.monotonic()
    run_module(["launch.train", "tiny", *options], limit_s, logs)
    seconds = time.monotonic() - begun
    record = RunRecord.read(run)
    assert record is not None
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = {
        name: [
            metric.value
            for metric in sorted(
                client.get_metric_history(record.mlflow_run, name), key=lambda one: one.step
            )
        ]
        for name in ("loss", "samples_per_s")
    }
    return seconds, statistics.median(found["samples_per_s"][WARMUP:]), found["loss"]


def run_module(command: Sequence[object], limit_s: float, logs: Path) -> str:
    """Run a module within a limit, its output in a file beside Ray's own logs.

    Returns:
        What it printed.

    Raises:
        ProcessError: If it fails, or does not end in time; then it is killed with its children.
    """
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"{command[0]}.txt"
    environment = {name: value for name, value in os.environ.items() if name not in _GROUP}
    with file.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
            whole = psutil.Process(process.pid)
            for one in [*whole.children(recursive=True), whole]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
    if command[0] == "launch.train" and _LOGS.is_dir():
        for log in _LOGS.rglob("*"):  # Those of Ray Train lie in a folder of their own.
            if log.suffix in (".err", ".out", ".log") and log.stat().st_size:
                shutil.copy(log, logs / log.name)
    if status != 0:
        what = (
            f"ended with {status}" if status is not None else f"did not end in {limit_s:.0f} s"
        )
        last = (file.read_text().strip().splitlines() or ["nothing was printed"])[-1]
        raise ProcessError(f"{command[0]} {what}: {last} (logs in {logs})")
    return file.read_text()
