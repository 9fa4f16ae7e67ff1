"""One rank: the worker process, with its heavy imports."""

import contextlib
import itertools
import json
import logging
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import ray.train
import torch

from acontrol._version import __version__
from acontrol.config import AdapterCard, RunConfig, TrainedOn
from acontrol.config.training import Extent
from acontrol.data.features import feature_folder
from acontrol.data.reader import ShardReader
from acontrol.data.skipping import agree_on_damage, refuse_other_skips
from acontrol.data.stream import TrainingStream, held_out
from acontrol.interop.begin import load_init
from acontrol.method.condition_dropout import ConditionedSteps
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.compilation import (
    chosen_extent,
    compile_asea,
    compile_for_training,
    keep_compiled_code,
)
from acontrol.networks.inpainting import is_inpainting
from acontrol.networks.load import BaseModels, load_base, quieten
from acontrol.runs import storage
from acontrol.runs.record import Launch
from acontrol.runs.storage import StoragePath
from acontrol.runs.tracking import SystemMetrics, Tracker
from acontrol.seeding import derive_seed
from acontrol.train.callbacks import RunObserver, Watchdog
from acontrol.train.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from acontrol.train.engine import AdapterEngine
from acontrol.train.loop import train
from acontrol.train.plan import seen_before

COMPILE_S = 1800  # Longest time to compile, as `cluster.hang_s` is for steps.


def train_rank(launch: Launch) -> None:
    """Train one rank, in the process group that Ray has set up."""
    config = launch.config
    _quieten()
    device = ray.train.torch.get_device()
    if config.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Which cuBLAS asks for.
        torch.use_deterministic_algorithms(True)
    precision = getattr(torch, config.runtime.precision)
    base = load_base(config.base, device, precision)
    checkpoint = _agreed_checkpoint(launch.run)
    extent = chosen_extent(config, device.type == "cuda")
    if config.runtime.channels_last or (
        config.runtime.channels_last is None and extent and device.type == "cuda"
    ):
        base.unet.to(memory_format=torch.channels_last)
    reader = ShardReader(config.data.shards or "", config.data.cache_dir)
    agree_on_damage(reader, config.data)
    if checkpoint is not None:
        refuse_other_skips(checkpoint.state.skipped_digest, reader)
    adapter = new_adapter(base, launch, reader, checkpoint).to(device)
    model = AnomalyControl(base, adapter, config)
    held, stream = _streams(reader, config, model.encoder.semantics.image_px, launch)
    engine = AdapterEngine(adapter, config, checkpoint.adapter_state() if checkpoint else None)
    start = checkpoint.state.step if checkpoint else 0
    steps = None
    if config.runtime.skip_dropped:
        steps = ConditionedSteps.of_run(
            config.seed, config.dropout, config.optim.batch_size, config.optim.steps
        )
    batches = stream.batches(
        start * config.optim.batch_size,
        config.micro_batch_size,
        engine.rank,
        engine.world_size,
        (config.optim.steps - start) * config.optim.accumulation,
        positions=None if steps is None else steps.positions,
    )
    # Only a launch's first workers find no record of the reservation.
    is_restart = engine.rank == 0 and launch.reserved_file.exists()
    if engine.rank == 0:
        _record_reservation(launch)
    if extent is not None:  # Before the observer, whose watchdog is for steps.
        _compile(model, extent, launch, say=engine.rank == 0)
    observer = RunObserver(launch, base, adapter, stream, engine, start, held)
    with contextlib.ExitStack() as around:
        around.callback(observer.close)
        if is_restart:
            observer.on_restart(checkpoint)
        if config.tracking.system_metrics and ray.train.get_context().get_local_rank() == 0:
            tracker = observer.tracker or Tracker(
                launch.tracking_uri, launch.mlflow_run, launch.run
            )
            node = f"node-{ray.train.get_context().get_node_rank()}"
            monitor = SystemMetrics(tracker, node)
            monitor.start()
            around.callback(monitor.finish)
        if config.profile and engine.rank == 0:
            observer.profiler = around.enter_context(_profiler(config, launch.folder))
        train(
            model,
            batches,
            engine,
            config,
            observer,
            start=start,
            shares=None if steps is None else steps.shares,
            validation=held,
        )


def _compile(model: AnomalyControl, extent: Extent, launch: Launch, *, say: bool) -> None:
    """Compile before the first step, which also finds out what does not compile."""
    keep_compiled_code(str(storage.on_this_node(launch.run) / "compiled"))
    if say:
        print(f"Compiling the U-Net ({extent})", flush=True)
    begun = time.monotonic()
    watchdog = Watchdog(max(launch.config.cluster.hang_s, COMPILE_S))
    size = launch.config.micro_batch_size
    reasons = {"The U-Net": compile_for_training(model, extent, size)}
    if launch.config.asea.steps and not launch.features:
        reasons["ASEA"] = compile_asea(model.encoder.semantics, size)
    watchdog.close()
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name} runs uncompiled: {reason}", flush=True)
    if say:
        print(f"Compiled in {time.monotonic() - begun:.0f} s", flush=True)


def _record_reservation(launch: Launch) -> None:
    """Record the workers' reservation, since Ray may leave it behind."""
    group = ray.util.get_current_placement_group()
    if group is not None:
        storage.write(launch.reserved_file, group.id.hex().encode())


def _agreed_checkpoint(run: StoragePath) -> Checkpoint | None:
    """The newest checkpoint by rank 0, since storage may show other ranks another one.

    Rank 0 has checked all files; each rank checks again what it loads.
    """
    chosen: list[StoragePath | None] = [None]
    if torch.distributed.get_rank() == 0:
        newest = newest_checkpoint(run)
        chosen = [newest.path if newest else None]
    torch.distributed.broadcast_object_list(chosen)
    return open_checkpoint(chosen[0]) if chosen[0] is not None else None


def _streams(
    reader: ShardReader, config: RunConfig, reference_px: int, launch: Launch
) -> tuple[TrainingStream | None, TrainingStream]:
    """The held-out samples, if any, and the training samples."""
    features = feature_folder(config, reader, launch.base_digest) if launch.features else None
    new_stream = partial(
        TrainingStream, reader, config.data, reference_px=reference_px, features=features
    )
    if not config.validation.every:
        return None, new_stream(seed=config.seed)
    held = held_out(reader.index, config.validation.share)
    # Order and noise of held-out samples do not depend on the seed, so that runs can be
    # compared.
    return new_stream(seed=0, used=held), new_stream(seed=config.seed, used=~held)


def _profiler(config: RunConfig, folder: StoragePath) -> torch.profiler.profile:
    """A profiler that traces rank 0 from its third step on; the file opens in Perfetto."""

    def keep(trace: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "trace.json")
            trace.export_chrome_trace(str(file))
            storage.write(folder / file.name, file.read_bytes())

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=config.profile, repeat=1),
        on_trace_ready=keep,
    )


def new_adapter(
    base: BaseModels, launch: Launch, reader: ShardReader, checkpoint: Checkpoint | None
) -> SemanticAdapter:
    """The initial adapter, with its card; a checkpoint's weights replace its own later."""
    config = launch.config
    if checkpoint is None:
        seen = itertools.chain(*seen_before(config).values(), [reader.index.trained_on])
        trained_on: tuple[TrainedOn, ...] | None = tuple(dict.fromkeys(seen))
    else:  # What its weights come from, whatever init is now.
        trained_on = checkpoint.card().trained_on
    card = AdapterCard(
        acontrol_version=__version__,
        base=config.base,
        base_digest=launch.base_digest,
        csm=config.csm,
        asea=config.asea,
        sga=config.sga,
        inpainting=is_inpainting(base.unet),
        resolution=config.data.resolution,
        reference_view=config.data.reference_view,
        target_crop=config.data.target_crop,
        target_px=config.data.target_px,
        split=reader.index.split,
        data_digest=reader.index.digest,
        seed=config.seed,
        steps=0,
        trained_on=trained_on,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            derive_seed(config.seed, "adapter")
        )  # The pooling has random weights.
        adapter = SemanticAdapter.from_unet(
            base.unet,
            base.vlm.config.qformer_config.hidden_size,
            mode=config.csm.mode,
            card=json.loads(card.model_dump_json()),
        )
    if config.init is not None and checkpoint is None:
        load_init(adapter, config.init)
    return adapter


def _quieten() -> None:
    """Silence the libraries' progress bars and informational messages."""
    quieten()
    for name in ("aiobotocore", "botocore"):  # They log where they found credentials.
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):
        if "/ray/train/" in name:  # Its loggers are named by file path.
            logging.getLogger(name).setLevel(logging.WARNING)
    # DeepSpeed uses deprecated names of torch's collectives.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
