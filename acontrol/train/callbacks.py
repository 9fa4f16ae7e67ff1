"""Callbacks of one rank: checkpoints, sample grids, metrics, progress."""

import contextlib
import faulthandler
import logging
import math
import time
from typing import Any

import psutil
import ray.train
import torch
from ray.train import CheckpointUploadMode

from acontrol.data.stream import TrainingStream
from acontrol.messages import counted
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels
from acontrol.progress import repeated
from acontrol.runs import storage
from acontrol.runs.record import Launch, RunRecord
from acontrol.runs.storage import StoragePath
from acontrol.runs.tracking import Tracker
from acontrol.train.checkpoint import (
    AdapterState,
    Checkpoint,
    TrainState,
    export_adapter,
    prune,
    write_checkpoint,
)
from acontrol.train.engine import AdapterEngine
from acontrol.train.loop import StepReport, Validation
from acontrol.train.sampling import guided_agreement, sample_grid

log = logging.getLogger(__name__)
# Metric names of the loop's phases.
SHARES = {
    "data": "data_wait_share",
    "forward": "forward_share",
    "backward": "backward_share",
    "optimizer": "optimizer_share",
}
# Steps between checks for a preemption notice, which are collective.
NOTICE_STEPS = 10
# Seconds between checks for a stop request, which may read an object store.
STOP_S = 0.5


class RunObserver:
    """Checkpoints, sample grids, metrics and progress; only rank 0 writes them."""

    def __init__(
        self,
        launch: Launch,
        base: BaseModels,
        adapter: SemanticAdapter,
        stream: TrainingStream,
        engine: AdapterEngine,
        start: int,
        held: TrainingStream | None = None,
    ):
        """Observe a run from step ``start`` on; ``held`` are the held-out samples."""
        self.launch, self.config, self.run = launch, launch.config, launch.run
        self.base, self.adapter, self.stream, self.engine = base, adapter, stream, engine
        self.held = held
        self.validated: dict[str, float] = {}
        self.watchdog = Watchdog(self.config.cluster.hang_s)
        self._noticed: set[str] = set()
        self._looked, self._stop = -math.inf, False
        self.tracker: Tracker | None = None
        if engine.rank == 0:
            self.tracker = Tracker(launch.tracking_uri, launch.mlflow_run, launch.run)
        self.profiler: torch.profiler.profile | None = None
        self.bar: Any = None
        self._around = contextlib.ExitStack()
        self._status = f"step {start}/{self.config.optim.steps}"
        if engine.rank == 0 and launch.show_progress:
            from ray.experimental import tqdm_ray  # Draws on the driver's terminal.

            steps = self.config.optim.steps
            self.bar = tqdm_ray.tqdm(total=steps, desc="training", unit="step")
            self.bar.update(start)
            self._around.callback(self.bar.close)
        elif engine.rank == 0:
            self._around.enter_context(repeated(lambda: f"training: {self._status}"))

    def on_restart(self, checkpoint: Checkpoint | None) -> None:
        """Log where workers restarted within a launch continue."""
        if self.tracker is not None:
            start = (
                f"step {checkpoint.state.step} ({checkpoint.path})" if checkpoint else "step 0"
            )
            redone = self.tracker.last_step - (checkpoint.state.step if checkpoint else 0)
            repeated = counted(max(0, redone), "step is", "steps are")
            line = f"Workers restarted from {start}: {repeated} repeated"
            self._say(line)
            self.tracker.event(line)

    def on_step(self, report: StepReport) -> None:
        """Log a step."""
        self.watchdog.progress()
        if self.tracker is None:
            return
        if self.profiler is not None:
            self.profiler.step()
        # Skipping changes what the mean is over, so it changes the name.
        skips = self.config.runtime.skip_dropped
        metrics = {
            # First, as it is never NaN: a resume recognizes logged steps by the first metric.
            "learning_rate": report.learning_rate,
            "conditioned_loss" if skips else "loss": report.loss,
            "asea_energy_before": report.energy_before,
            "asea_energy_after": report.energy_after,
            "samples_per_s": report.samples_per_s,
            **{SHARES[phase]: share for phase, share in report.shares.items()},
            "skipped_steps": float(self.engine.skipped_steps),
            "memory_gib": _memory_gib(),
        }
        # A skipped step's may be non-finite.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.tracker.log_metrics(finite, report.step)
        if report.skipped is not None:
            log.warning(report.skipped)
            self.tracker.event(report.skipped)
        self._status = (
            f"step {report.step}/{self.config.optim.steps}  loss {report.loss:.4f}  "
            f"{report.samples_per_s:.1f} images/s"
        )
        if self.bar is not None:
            _, *values = self._status.split("  ")
            self.bar.set_description(f"training ({', '.join(values)})")
            self.bar.update(1)

    def on_validation(self, step: int, result: Validation) -> None:
        """Log a validation; rank 0 samples, the others only help to gather the weights."""
        self.validated = {"validation_loss": result.loss, "validation_energy": result.energy}
        drawings = self.config.validation.drawings
        if drawings and self.held is not None:
            weights = self.engine.exported()
            if self.tracker is not None:
                self.validated["guided_agreement"] = guided_agreement(
                    self.base, self.adapter, weights, self.held, self.config
                )
        if self.tracker is not None:
            self.tracker.log_metrics(self.validated, step)
        self.watchdog.progress()

    def should_stop(self) -> bool:
        """Whether the driver asks to stop; only rank 0 checks."""
        if self.tracker is not None and time.monotonic() - self._looked > STOP_S:
            self._stop = self.launch.stop_file.exists()
            self._looked = time.monotonic()
        return self._stop

    def wants_checkpoint(self, step: int) -> bool:
        """Whether one of the nodes is about to be preempted; the same on every rank."""
        if step % NOTICE_STEPS:
            return False
        notice = ray.train.get_preemption_info()
        leaving = set(notice.preempted_node_ids) - self._noticed if notice else set()
        self._noticed |= leaving
        if leaving and self.tracker is not None:
            line = f"step {step}: a node is about to be preempted; writing a checkpoint"
            self._say(line)
            self.tracker.event(line)
        return bool(leaving)

    def on_samples(self, step: int) -> None:
        """Log a sample grid; other ranks only help to gather the weights."""
        weights = self.engine.exported()
        if self.tracker is not None:
            grid = sample_grid(self.base, self.adapter, weights, self.stream, self.config)
            self.tracker.log_image(grid, "samples", step)
        self.watchdog.progress()

    def on_checkpoint(self, report: StepReport) -> None:
        """Write a checkpoint on rank 0; all ranks report, as Ray counts the calls."""
        state = self.engine.state()
        checkpoint = None
        if self.tracker is not None:
            # Before the checkpoint, so that a resume from it has all earlier metrics.
            self.tracker.flush()
            path = self._write(report.step, state)
            checkpoint = ray.train.Checkpoint(*storage.for_ray(path))
            if self.bar is None:
                self._say(f"{self._status}  checkpoint")
        ray.train.report(
            {"step": report.step, "loss": report.loss, **self.validated},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )
        self.watchdog.progress()

    def close(self) -> None:
        """Flush and stop watching before the worker ends."""
        self.watchdog.close()
        self._around.close()
        if self.tracker is not None:
            self.tracker.leave()

    def _say(self, line: str) -> None:
        """Print a line, which Ray passes on to the driver's terminal."""
        print(line, flush=True)

    def _write(self, step: int, state: AdapterState) -> StoragePath:
        record = RunRecord.read(self.run)
        if record is not None and record.launch != self.launch.folder.name:
            raise RuntimeError(f"the launch {record.launch} has taken over {self.run}")
        card = dict(self.adapter.config.card, steps=step)
        exported = SemanticAdapter(
            self.adapter.config.layers,
            self.adapter.config.semantic_dim,
            self.adapter.config.mode,
            card,
        )
        exported.load_state_dict(state.averages or state.weights)
        path = write_checkpoint(
            self.launch.folder,
            exported,
            state,
            TrainState(
                step=step,
                position=step * self.config.optim.batch_size,
                data_digest=self.stream.reader.index.digest,
                base_digest=self.launch.base_digest,
                skipped_digest=self.stream.reader.skipped_digest,
                config=self.config,
            ),
        )
        export_adapter(path, self.run / "adapter")
        prune(self.run, self.config.checkpoint.keep, newest=path)
        return path


def _memory_gib() -> float:
    """Peak GPU memory of this rank; without a GPU, its process's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


class Watchdog:
    """Ends this process when it makes no progress for too long.

    A hung worker blocks all others at their next collective, and Ray, which polls its actors
    from another thread, does not notice. The interpreter's own watchdog needs no Python code to
    run, so it also ends a process that hangs inside a library, with the traceback of every
    thread on standard error. A process that is halted altogether cannot end itself: the others
    do, and Ray then ends it too.
    """

    def __init__(self, seconds: float):
        """Start; ``seconds`` is the longest time without progress."""
        self.seconds = seconds
        self.progress()

    def progress(self) -> None:
        """Restart the countdown."""
        faulthandler.dump_traceback_later(self.seconds, exit=True)

    def close(self) -> None:
        """Stop watching."""
        faulthandler.cancel_dump_traceback_later()
