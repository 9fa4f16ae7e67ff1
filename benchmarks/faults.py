"""Random faults injected into a small real training run, and what they cost.

    python -m benchmarks.faults --minutes 10 [--seed 0]

Two workers on the built-in base, DeepSpeed's ZeRO 1 or 2, Ray Train, MLflow on a real server.
Each trial has a few of: a worker killed (after a step, in a save, at a report), a worker
stopped (SIGSTOP), the newest checkpoint damaged and a worker killed, a full disk in a save, the
driver killed with all its processes, and MLflow unavailable for some seconds (refusing,
hanging, answering 500). The same command is repeated until the run is done; then its weights,
moments, losses, sample keys and MLflow's history are compared with an undisturbed run's.

Prints a table, and writes benchmarks/results/DATE_faults_HARDWARE.{json,md}.
"""

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from acontrol.data.builtin import write_dataset
from benchmarks.disturbed import Fault
from benchmarks.mlflow_proxy import Proxy, Server
from benchmarks.report import write_report
from benchmarks.trial import (
    Trial,
    bytes_wrong,
    carry_out,
    config_of,
    losses_in_mlflow,
    steps_noted,
    steps_redone,
)
from launch import shard

STEPS, EVERY = 30, 3
KINDS = ("kill", "stall", "corrupt", "full", "driver", "mlflow")


class Bench:
    """The data, server and counts of all trials."""

    def __init__(self, folder: Path, seed: int):
        """Make data and start the server."""
        self.folder, self.draw = folder, random.Random(seed)
        write_dataset(folder / "data", num_good=1, num_good_test=1, num_defects=3)
        self.shards = folder / "shards"
        shard.run([str(folder / "data"), "--out", str(self.shards), "--split", "all"])
        self.server = Server(folder).start()
        self.proxy = Proxy(self.server.port)
        self.proxy.set("pass")
        self.calm: dict[int, Path] = {}
        self.injected: Counter[str] = Counter()
        self.recovered: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.trials = 0

    def undisturbed(self, stage: int) -> Path:
        """The folder of an undisturbed run with this ZeRO stage."""
        if stage not in self.calm:
            folder = self.folder / f"calm-{stage}"
            done = carry_out(folder, self._config(folder, stage))
            assert done.statuses == [0], done.errors
            self.calm[stage] = folder
        return self.calm[stage]

    def _config(self, folder: Path, stage: int) -> Any:
        shape = {"stage": stage, "steps": STEPS, "every": EVERY, "uri": self.proxy.uri}
        return config_of(folder / "run", self.shards, **shape)

    def trial(self) -> None:
        """One run with a few faults."""
        stage = self.draw.choice((1, 2))
        calm = self.undisturbed(stage)
        kinds = self.draw.sample(KINDS, 3)
        folder = self.folder / f"trial-{self.trials}"
        self.trials += 1
        faults = tuple(self._fault(kind) for kind in kinds if kind not in ("driver", "mlflow"))
        away = threading.Thread(target=self._away, args=[folder / "notes"])
        if "mlflow" in kinds:
            away.start()
        done = carry_out(
            folder,
            self._config(folder, stage),
            faults,
            driver_dies_after_s=self.draw.uniform(0, 8) if "driver" in kinds else None,
        )
        if "mlflow" in kinds:
            away.join()
        self._count(done, folder, calm)

    def _fault(self, kind: str) -> Fault:
        step = self.draw.randrange(2, STEPS)
        phase = self.draw.choice(("step", "save", "report")) if kind == "kill" else "step"
        if kind == "full":
            phase = "save"
        if phase != "step":
            step = EVERY * self.draw.randrange(1, STEPS // EVERY)
        rank = 0 if phase == "save" else self.draw.randrange(2)
        return Fault(kind=kind, rank=rank, step=step, phase=phase)  # type: ignore[arg-type]

    def _away(self, notes: Path) -> None:
        """Once a step is recorded, disconnect the server for some seconds."""
        deadline = time.monotonic() + 120
        while not list(notes.glob("steps-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.proxy.set(self.draw.choice(("refuse", "hang", "500")))
        (notes / "happened-mlflow").touch()
        time.sleep(self.draw.uniform(3, 10))
        self.proxy.set("pass")

    def _count(self, done: Trial, folder: Path, calm: Path) -> None:
        whole = done.statuses[-1] == 0
        wrong = bytes_wrong(done.run, calm / "run") if whole else -1
        once, again = steps_noted(calm / "notes"), steps_noted(folder / "notes")
        same = whole and all(
            set(again.get(step, ())) == {record} for step, (record,) in once.items()
        )
        logged = whole and losses_in_mlflow(done.run, self.proxy.uri) == losses_in_mlflow(
            calm / "run", self.proxy.uri
        )
        restarts = steps_redone(folder / "notes")
        for when, name in done.happened:
            self.injected[name] += 1
            self.recovered[name] += bool(whole and same and logged and wrong == 0)
            self.wrong[name] += max(wrong, 0)
            after = [steps for began, steps in restarts if began > when]
            if name != "mlflow" and after:
                self.lost[name] += after[0]
                self.most[name] = max(self.most[name], after[0])
        names = ", ".join(name for _, name in done.happened)
        verdict = "same" if whole and same and logged and not wrong else "NOT the same"
        print(f"trial {self.trials}: {names}: exits {done.statuses}, {verdict}", flush=True)
        if verdict != "same":
            print(f"  bytes {wrong}, steps {same}, MLflow {logged}; {done.errors}", flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """One row per kind of fault."""
        return [
            {
                "fault": kind,
                "injected": self.injected[kind],
                "recovered": self.recovered[kind],
                "steps done again": self.lost[kind],
                "most at once": self.most[kind],
                "bytes wrong": self.wrong[kind],
            }
            for kind in KINDS
        ]


def main() -> None:
    """Run trials until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acontrol-faults-") as scratch:
        bench = Bench(Path(scratch), options.seed)
        try:
            for stage in (1, 2):
                bench.undisturbed(stage)
            until = time.monotonic() + 60 * options.minutes
            while time.monotonic() < until:
                bench.trial()
        finally:
            bench.server.kill()
    config = {"steps": STEPS, "every": EVERY, **vars(options), "trials": bench.trials}
    write_report("faults", bench.rows(), config, "Faults at random against a training run")


if __name__ == "__main__":
    main()
