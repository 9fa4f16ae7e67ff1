"""Does a step take longer while MLflow is unavailable?

    python -m benchmarks.bench_outage [--steps 20] [--rounds 5] [--batch 4]

The training loop with the tiny base and DeepSpeed in one process, without Ray, against a real
``mlflow server`` behind a proxy that works, refuses, hangs, answers 500, or is cut for half of
the steps. Each round has a stretch of steps of every kind, in changing order; after each the
proxy works again, and the steps on the server are counted. A ratio compares a stretch's median
step with that of the same round with the server reachable; the table has their median.
Writes benchmarks/results/DATE_outage_HARDWARE.{json,md}.
"""

import argparse
import dataclasses
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import torch

from acontrol.config import BaseConfig, DataConfig, RunConfig
from acontrol.data.stream import Batch
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import load_base, quieten
from acontrol.runs.server import TrackingStore
from acontrol.runs.tracking import Tracker
from acontrol.train.engine import AdapterEngine
from acontrol.train.loop import StepReport, Validation, train
from benchmarks.bench_step import join_alone, random_batch
from benchmarks.mlflow_proxy import Proxy, Server
from benchmarks.report import write_report

KINDS = {"there": "pass", "refuses": "refuse", "hangs": "hang", "500": "500", "cut": "pass"}


class Watch:
    """Logs as a run does, and times the steps."""

    def __init__(self, tracker: Tracker, proxy: Proxy, cut: tuple[int, int] | None):
        """Take the tracker, and between which steps the proxy is cut."""
        self.tracker, self.proxy, self.cut = tracker, proxy, cut
        self.seconds: list[float] = []
        self.logging: list[float] = []
        self.begun = time.perf_counter()

    def on_step(self, report: StepReport) -> None:
        """Log a dozen metrics."""
        if self.cut is not None and report.step in self.cut:
            self.proxy.set("refuse" if report.step == self.cut[0] else "pass")
        before = time.perf_counter()
        values = {f"metric_{number}": report.loss + number for number in range(12)}
        self.tracker.log_metrics({"loss": report.loss, **values}, report.step)
        now = time.perf_counter()
        self.logging.append(now - before)
        self.seconds.append(now - self.begun)
        self.begun = now

    def on_checkpoint(self, report: StepReport) -> None:
        """As before a checkpoint."""
        self.tracker.flush()

    def on_validation(self, step: int, validation: Validation) -> None:
        """Nothing to do."""

    def on_samples(self, step: int) -> None:
        """Nothing to do."""

    def should_stop(self) -> bool:
        """Never."""
        return False

    def wants_checkpoint(self, step: int) -> bool:
        """Never."""
        return False


class Bench:
    """A model, and stretches of steps with it."""

    def __init__(self, batch: int, steps: int, server: Server, folder: Path):
        """Build what all stretches share."""
        self.steps, self.server, self.folder = steps, server, folder
        self.proxy = Proxy(server.port)
        self.config = RunConfig.model_validate(
            {
                "data": DataConfig(resolution=64),
                "optim": {"batch_size": batch, "steps": steps},
                "samples": {"every": 0},
            }
        )
        base = load_base(BaseConfig())
        adapter = SemanticAdapter.from_unet(base.unet, 64)
        self.model = AnomalyControl(base, adapter, self.config)
        self.engine = AdapterEngine(adapter, self.config, None)
        self.batch = random_batch(batch, 64, 64)

    def batches(self) -> Iterator[Batch]:
        """The same pixels with other noise at every step."""
        size = len(self.batch.keys)
        for step in range(self.steps):
            yield dataclasses.replace(
                self.batch, positions=[step * size + place for place in range(size)]
            )

    def stretch(self, kind: str, name: str) -> tuple[float, float, int]:
        """Seconds of the median step and of the longest logging; steps lost or doubled."""
        self.proxy.set("pass")
        tracker = Tracker.open(
            TrackingStore(self.proxy.uri), "bench", name, None, self.folder / name
        )
        self.proxy.set(KINDS[kind])
        cut = (self.steps // 4, 3 * self.steps // 4) if kind == "cut" else None
        watch = Watch(tracker, self.proxy, cut)
        train(self.model, self.batches(), self.engine, self.config, watch)
        self.proxy.set("pass")
        tracker.finish("FINISHED")
        client = mlflow.MlflowClient(tracking_uri=self.server.uri)
        held = [metric.step for metric in client.get_metric_history(tracker.run_id, "loss")]
        lost = self.steps - len(set(held)) + (len(held) - len(set(held)))
        return statistics.median(watch.seconds), max(watch.logging), lost


def main() -> None:
    """Time every kind in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="a stretch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"
    quieten()
    torch.set_num_threads(1)
    join_alone()
    measured: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(Path(scratch)).start()
        try:
            bench = Bench(arguments.batch, arguments.steps, server, Path(scratch))
            bench.stretch("there", "warm-up")
            shuffle, order = random.Random(0), list(KINDS)
            for number in range(arguments.rounds):
                shuffle.shuffle(order)
                for kind in order:
                    measured[kind].append(bench.stretch(kind, f"{kind}-{number}"))
        finally:
            server.kill()
    rows = []
    for kind, stretches in measured.items():
        pairs = zip(stretches, measured["there"], strict=True)
        ratios = [stretch[0] / there[0] for stretch, there in pairs]
        rows.append(
            {
                "MLflow": kind,
                "median_step_ms": round(
                    1000 * statistics.median(stretch[0] for stretch in stretches), 1
                ),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_least": round(min(ratios), 3),
                "ratio_most": round(max(ratios), 3),
                "longest_log_ms": round(1000 * max(stretch[1] for stretch in stretches), 2),
                "steps_lost_or_doubled": sum(stretch[2] for stretch in stretches),
            }
        )
    write_report("outage", rows, vars(arguments), __doc__.splitlines()[0])


if __name__ == "__main__":
    main()
