"""Run training on Ray: the driver prepares and watches, workers train.

RUN/
  config.json      the resolved config of the last launch
  run.json         ids by which the same command continues
  adapter/         the newest exported adapter: what launch.generate takes
  launches/*/      one folder a launch: Ray's own files and the checkpoint bundles
  mlflow.db        MLflow, unless a server was named; artifacts/ beside it
"""

import contextlib
import json
import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from acontrol import base as base_models
from acontrol.config import RunConfig, UserError
from acontrol.data.reader import ShardReader
from acontrol.train.checkpoint import Bundle, changed_settings, newest_bundle
from acontrol.train.paths import absolute
from acontrol.train.tracking import Tracker, tracking_uri
from acontrol.train.worker import Launch, run_worker

LAUNCHES = "launches"


class TrainingStoppedError(Exception):
    """Training ended before its last step; says why and how to go on."""


def run_training(config: RunConfig) -> Path:
    """Train, or continue, the run in ``config.output``; returns its folder.

    Raises:
        UserError: If something about the config, the data or the base must be put right.
        TrainingStoppedError: If it ended early: interrupted, or a worker failed.
    """
    base_models.quieten()
    config = absolute(config)
    run = Path(_required(config.output, "--output RUN", "where the run goes"))
    reader = ShardReader(
        _required(config.data.shards, "--data.shards DIR", "what launch.shard wrote"),
        config.data.cache_dir,
    )
    if config.sga.scale == 0:
        raise UserError("sga.scale is 0: the adapter would not be used, so it cannot learn")
    if config.init is not None and not Path(config.init, "config.json").is_file():
        raise UserError(f"init {config.init}: no adapter there (it holds config.json)")
    digest = base_models.digest(config.base)
    bundle = newest_bundle(run)
    if bundle is not None:
        _check_continues(bundle, config, reader.index.digest, digest)
        print(f"Continuing from step {bundle.state.step} ({bundle.path})", flush=True)
        if bundle.state.step >= config.optim.steps:
            print(f"Nothing to do: {run} has its {config.optim.steps} steps", flush=True)
            return run
    run.mkdir(parents=True, exist_ok=True)
    known_file = run / "run.json"
    known = json.loads(known_file.read_text())["mlflow_run"] if known_file.exists() else None
    tracker = Tracker.start(config, run, known)
    known_file.write_text(json.dumps({"mlflow_run": tracker.run_id, "mlflow_uri": tracker.uri}))
    (run / "config.json").write_text(config.model_dump_json(indent=1))
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    launch = Launch(
        config,
        run / LAUNCHES / name,
        tracking_uri(config, run),
        tracker.run_id,
        digest,
        sys.stderr.isatty(),
    )
    try:
        with _cluster(config.cluster.num_workers * config.cluster.cpus_per_worker):
            _fit(launch, name)
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise TrainingStoppedError(f"Interrupted. {_how_to_resume(run)}") from None
    except ray.train.TrainingFailedError as error:
        tracker.finish("FAILED")
        raise TrainingStoppedError(f"{_root_cause(error)}. {_how_to_resume(run)}") from error
    tracker.finish("FINISHED")
    return run


def _fit(launch: Launch, name: str) -> None:
    cluster = launch.config.cluster
    on_gpus = cluster.use_gpu
    if on_gpus is None:
        on_gpus = ray.cluster_resources().get("GPU", 0) >= cluster.num_workers
    environment = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0")}
    if not on_gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"launch": launch},
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=on_gpus,
            accelerator_type=cluster.accelerator_type,
            placement_strategy=cluster.placement,
            resources_per_worker={
                "CPU": cluster.cpus_per_worker,
                **({"GPU": 1} if on_gpus else {}),
            },
        ),
        torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(launch.folder.parent),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env={"env_vars": environment},
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    _fit_until_stopped(trainer, launch)


def _fit_until_stopped(trainer: TorchTrainer, launch: Launch) -> None:
    """Wait for training; the first SIGINT or SIGTERM asks for a bundle, the second ends it.

    Ray runs in a thread of its own, because in the main one it would take SIGINT for itself
    and abort the workers where they stand.
    """
    outcome: list[BaseException | None] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit().error)
        except BaseException as error:
            outcome.append(error)

    def ask_to_stop(number: int, frame: object) -> None:
        if launch.stop_file.exists():
            raise KeyboardInterrupt
        launch.folder.mkdir(parents=True, exist_ok=True)
        launch.stop_file.touch()
        print("Stopping after this step, with a checkpoint; again to stop at once", flush=True)

    thread = threading.Thread(target=fit, daemon=True)
    in_main_thread = threading.current_thread() is threading.main_thread()
    watched = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = {number: signal.signal(number, ask_to_stop) for number in watched}
    try:
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if outcome[0] is not None:
        raise outcome[0]
    if launch.stop_file.exists():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _cluster(cpus: float) -> Iterator[None]:
    """Join the cluster that is there, or start a local one; leave it at the end."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        # Workers wait for each other most of the time, so more of them than cores may run.
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),
            object_store_memory=256 * 2**20,
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _required(value: str | None, option: str, meaning: str) -> str:
    if value is None:
        raise UserError(f"{option} is needed: {meaning}")
    return value


def _check_continues(
    bundle: Bundle, config: RunConfig, data_digest: str, base_digest: str
) -> None:
    before = bundle.state
    changes = changed_settings(before.config, config)
    if before.data_digest != data_digest:
        changes.append("the shards' contents")
    if before.base_digest != base_digest:
        changes.append("the base models' files")
    if changes:
        raise UserError(
            f"{config.output} holds a run with other settings ({'; '.join(changes)}): "
            "name another --output, or give the same settings to continue it"
        )


def _how_to_resume(run: Path) -> str:
    bundle = newest_bundle(run)
    if bundle is None:
        return "No checkpoint yet: the same command starts again"
    return f"The same command continues from step {bundle.state.step} ({bundle.path})"


def _root_cause(error: Exception) -> str:
    """One line from Ray's report: the first worker's own words."""
    failures = getattr(error, "worker_failures", {})
    if not failures:
        return " ".join(str(error).split())[:500]
    rank, failure = min(failures.items())
    cause = getattr(failure, "_base_exc", failure)
    if type(cause).__name__ == "WorkerHealthCheckFailedError":
        return f"Worker {rank} died: killed, out of memory, or its node was lost"
    words = " ".join(str(cause).split())[:500]
    return f"Worker {rank} failed: {type(cause).__name__}: {words}"
