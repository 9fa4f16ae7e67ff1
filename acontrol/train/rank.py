"""One rank: what a worker process does, with everything heavy that it needs."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointUploadMode

from acontrol import base as base_models
from acontrol._version import __version__
from acontrol.config import AdapterCard
from acontrol.data.reader import ShardReader
from acontrol.data.stream import TrainingStream
from acontrol.model import AnomalyControl
from acontrol.sga import SemanticAdapter
from acontrol.train.checkpoint import (
    TrainState,
    export_adapter,
    newest_bundle,
    prune,
    write_bundle,
)
from acontrol.train.engine import AdapterEngine, AdapterState
from acontrol.train.loop import StepReport, train
from acontrol.train.samples import sample_grid
from acontrol.train.tracking import Tracker
from acontrol.train.worker import Launch


def train_rank(launch: Launch) -> None:
    """Train this rank's share. Ray has set up the process group."""
    config = launch.config
    _quieten()
    run = launch.folder.parent.parent
    device = ray.train.torch.get_device()
    precision = getattr(torch, config.runtime.precision)
    base = base_models.load_base(config.base, device, precision)
    bundle = newest_bundle(run)
    reader = ShardReader(config.data.shards or "", config.data.cache_dir)
    adapter = new_adapter(base, launch, reader).to(device)
    model = AnomalyControl(base, adapter, config)
    stream = TrainingStream(
        reader, config.data, seed=config.seed, reference_px=model.semantics.image_px
    )
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
    train(model, batches, engine, config, observer, start=start)


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
        self.bar: Any = None
        if engine.rank == 0 and launch.show_progress:
            from ray.experimental import tqdm_ray

            self.bar = tqdm_ray.tqdm(total=self.config.optim.steps, desc="training")
            self.bar.update(start)

    def on_step(self, report: StepReport) -> None:
        if self.tracker is None:
            return
        metrics = {
            "loss": report.loss,
            "asea_energy_before": report.energy_before,
            "asea_energy_after": report.energy_after,
            "samples_per_s": report.samples_per_s,
            "data_wait_share": report.data_wait_share,
            "learning_rate": report.learning_rate,
            "skipped_steps": float(self.engine.skipped_steps),
        }
        self.tracker.log_metrics(metrics, report.step)
        if self.bar is not None:
            self.bar.update(1)
            if report.step == self.config.optim.steps:
                self.bar.close()

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
        card = dict(self.adapter.config.card, steps=step)
        exported = SemanticAdapter(
            self.adapter.config.layers,
            self.adapter.config.semantic_dim,
            self.adapter.config.mode,
            card,
        )
        exported.load_state_dict(state.weights)
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
        prune(self.run, self.config.checkpoint.keep)
        return path


def _quieten() -> None:
    """Loading bars and informational lines of the libraries are no news of training."""
    base_models.quieten()
    for name in list(logging.root.manager.loggerDict):
        if "/ray/train/" in name:  # Its report calls log under their file's path.
            logging.getLogger(name).setLevel(logging.WARNING)
    # DeepSpeed calls torch's collectives by their old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
