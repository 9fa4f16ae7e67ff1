"""One rank: what a worker process does, with everything heavy that it needs."""

import contextlib
import json
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch
from ray.train import CheckpointUploadMode

from acontrol import base as base_models
from acontrol._version import __version__
from acontrol.config import AdapterCard, RunConfig, derive_seed
from acontrol.data.reader import ShardReader
from acontrol.data.stream import TrainingStream, held_out
from acontrol.model import AnomalyControl
from acontrol.sga import SemanticAdapter
from acontrol.train.checkpoint import (
    Bundle,
    TrainState,
    export_adapter,
    newest_bundle,
    prune,
    read_bundle,
    write_bundle,
)
from acontrol.train.engine import AdapterEngine, AdapterState
from acontrol.train.loop import StepReport, train
from acontrol.train.samples import sample_grid
from acontrol.train.tracking import Tracker
from acontrol.train.worker import Launch, RunRecord


def train_rank(launch: Launch) -> None:
    """Train this rank's share. Ray has set up the process group."""
    config = launch.config
    _quieten()
    run = launch.folder.parent.parent
    device = ray.train.torch.get_device()
    precision = getattr(torch, config.runtime.precision)
    base = base_models.load_base(config.base, device, precision)
    bundle = _agreed_bundle(run)
    reader = ShardReader(config.data.shards or "", config.data.cache_dir)
    adapter = new_adapter(base, launch, reader).to(device)
    model = AnomalyControl(base, adapter, config)
    held, stream = _streams(reader, config, model.semantics.image_px)
    engine = AdapterEngine(adapter, config, bundle.adapter_state() if bundle else None)
    start = bundle.state.step if bundle else 0
    batches = stream.batches(
        start * config.optim.batch_size,
        config.micro_batch_size,
        engine.rank,
        engine.world_size,
        (config.optim.steps - start) * config.optim.accumulation,
    )
    observer = _Observer(launch, run, base, adapter, stream, engine, start)
    with contextlib.ExitStack() as around:
        if config.tracking.system_metrics and ray.train.get_context().get_local_rank() == 0:
            tracker = observer.tracker or Tracker(launch.tracking_uri, launch.mlflow_run)
            node = f"node-{ray.train.get_context().get_node_rank()}"
            around.callback(tracker.watch_system(node).finish)
        if config.profile and engine.rank == 0:
            observer.profiler = around.enter_context(_profiler(config, launch.folder))
        train(model, batches, engine, config, observer, start=start, validation=held)


def _agreed_bundle(run: Path) -> Bundle | None:
    """The bundle that rank 0 finds newest: storage may show other ranks another one."""
    chosen: list[Path | None] = [None]
    if torch.distributed.get_rank() == 0:
        newest = newest_bundle(run)
        chosen = [newest.path if newest else None]
    torch.distributed.broadcast_object_list(chosen)
    return read_bundle(chosen[0]) if chosen[0] is not None else None


def _streams(
    reader: ShardReader, config: RunConfig, reference_px: int
) -> tuple[TrainingStream | None, TrainingStream]:
    """The held-out samples, if any, and those to train on."""
    if not config.validation.every:
        everything = TrainingStream(
            reader, config.data, seed=config.seed, reference_px=reference_px
        )
        return None, everything
    held = held_out(reader.index, config.validation.share)
    # The held-out samples keep one order and one noise whatever the run's seed, so that
    # runs compare.
    return (
        TrainingStream(reader, config.data, seed=0, reference_px=reference_px, used=held),
        TrainingStream(
            reader, config.data, seed=config.seed, reference_px=reference_px, used=~held
        ),
    )


def _profiler(config: RunConfig, folder: Path) -> torch.profiler.profile:
    """Trace rank 0 for some steps after two others; the file opens in Perfetto."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(
        activities=kinds,
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=config.profile, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(folder / "trace.json")),
    )


def new_adapter(
    base: base_models.BaseModels, launch: Launch, reader: ShardReader
) -> SemanticAdapter:
    """The adapter that training starts from, with its card."""
    config = launch.config
    card = AdapterCard(
        acontrol_version=__version__,
        base=config.base,
        base_digest=launch.base_digest,
        csm=config.csm,
        asea=config.asea,
        sga=config.sga,
        resolution=config.data.resolution,
        reference_view=config.data.reference_view,
        split=reader.index.split,
        data_digest=reader.index.digest,
        seed=config.seed,
        steps=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "adapter"))  # The pooling starts at random.
        adapter = SemanticAdapter.from_unet(
            base.unet,
            base.vlm.config.qformer_config.hidden_size,
            mode=config.csm.mode,
            card=json.loads(card.model_dump_json()),
        )
    if config.init is not None:
        adapter.load_state_dict(SemanticAdapter.from_pretrained(config.init).state_dict())
    return adapter


class _Observer:
    """Bundles, pictures, metrics and progress of one worker; only rank 0 talks to anyone."""

    def __init__(
        self,
        launch: Launch,
        run: Path,
        base: base_models.BaseModels,
        adapter: SemanticAdapter,
        stream: TrainingStream,
        engine: AdapterEngine,
        start: int,
    ):
        self.launch, self.config, self.run = launch, launch.config, run
        self.base, self.adapter, self.stream, self.engine = base, adapter, stream, engine
        self.tracker = (
            Tracker(launch.tracking_uri, launch.mlflow_run) if engine.rank == 0 else None
        )
        self.profiler: torch.profiler.profile | None = None
        self.bar: Any = None
        if engine.rank == 0 and launch.show_progress:
            from ray.experimental import tqdm_ray

            self.bar = tqdm_ray.tqdm(total=self.config.optim.steps, desc="training")
            self.bar.update(start)

    def on_step(self, report: StepReport) -> None:
        if self.tracker is None:
            return
        if self.profiler is not None:
            self.profiler.step()
        # Skipping changes what the mean is over, so it changes the name.
        skips = self.config.runtime.skip_dropped
        metrics = {
            "conditioned_loss" if skips else "loss": report.loss,
            "asea_energy_before": report.energy_before,
            "asea_energy_after": report.energy_after,
            "samples_per_s": report.samples_per_s,
            "data_wait_share": report.data_wait_share,
            "learning_rate": report.learning_rate,
            "skipped_steps": float(self.engine.skipped_steps),
            "memory_gib": _memory_gib(),
        }
        # A step of which every sample was skipped has no loss and no energies.
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        self.tracker.log_metrics(known, report.step)
        if self.bar is not None:
            self.bar.update(1)
            if report.step == self.config.optim.steps:
                self.bar.close()

    def on_validation(self, step: int, loss: float) -> None:
        if self.tracker is not None:
            self.tracker.log_metrics({"validation_loss": loss}, step)

    def should_stop(self) -> bool:
        return self.tracker is not None and self.launch.stop_file.exists()

    def on_samples(self, step: int) -> None:
        weights = self.engine.weights()
        if self.tracker is not None:
            grid = sample_grid(self.base, self.adapter, weights, self.stream, self.config)
            self.tracker.log_image(grid, "samples", step)

    def on_checkpoint(self, report: StepReport) -> None:
        state = self.engine.state()
        checkpoint = None
        if self.tracker is not None:
            # Sent before the bundle is: a resume from it has every earlier metric.
            self.tracker.flush()
            path = self._write(report.step, state)
            checkpoint = ray.train.Checkpoint.from_directory(str(path))
            if self.bar is None:
                # Ray Train doubles print(): to the log and to the console.
                sys.stdout.write(
                    f"step {report.step}/{self.config.optim.steps}  loss {report.loss:.4f}  "
                    f"E {report.energy_before:.3f} -> {report.energy_after:.3f}  "
                    f"{report.samples_per_s:.1f} samples/s\n"
                )
                sys.stdout.flush()
        ray.train.report(
            {"step": report.step, "loss": report.loss},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def _write(self, step: int, state: AdapterState) -> Path:
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
        path = write_bundle(
            self.launch.folder,
            exported,
            state,
            TrainState(
                step=step,
                position=step * self.config.optim.batch_size,
                data_digest=self.stream.reader.index.digest,
                base_digest=self.launch.base_digest,
                config=self.config,
            ),
        )
        export_adapter(path, self.run / "adapter")
        prune(self.run, self.config.checkpoint.keep, newest=path)
        return path


def _quieten() -> None:
    """Loading bars and informational lines of the libraries are no news of training."""
    base_models.quieten()
    for name in list(logging.root.manager.loggerDict):
        if "/ray/train/" in name:  # Its report calls log under their file's path.
            logging.getLogger(name).setLevel(logging.WARNING)
    # DeepSpeed calls torch's collectives by their old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def _memory_gib() -> float:
    """The most that this rank held on its GPU; without one, what its process holds."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30
