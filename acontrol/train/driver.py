"""Run training on Ray: the driver prepares and watches, workers train.

RUN/
  config.json      the resolved config of the last launch
  run.json         launch and MLflow run, by which the same command continues
  adapter/         the newest exported adapter: what launch.generate takes
  launches/*/      one folder a launch: Ray's own files and the checkpoint bundles
  mlflow.db        MLflow, unless a server was named; artifacts/ beside it
"""

import contextlib
import fcntl
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray.train
from pydantic import ValidationError
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from acontrol import base as base_models
from acontrol.config import RunConfig, UserError
from acontrol.data.reader import ShardReader
from acontrol.train.checkpoint import Bundle, changed_settings, export_adapter, newest_bundle
from acontrol.train.cluster import joined_cluster, uses_gpus, worker_environment
from acontrol.train.paths import absolute
from acontrol.train.tracking import Tracker, named_uri, tracking_uri
from acontrol.train.worker import Launch, RunRecord, run_worker

LAUNCHES = "launches"


class TrainingStoppedError(Exception):
    """Training ended before its last step; says why and how to go on.

    Attributes:
        status: Exit status for a command: 130 after an interrupt, else 1.
    """

    def __init__(self, message: str, status: int = 1):
        """Take the message and the exit status."""
        super().__init__(message)
        self.status = status


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
    with _only_launch(run):
        bundle = newest_bundle(run)
        if bundle is not None:
            _check_continues(bundle, config, reader.index.digest, digest)
            print(f"Continuing from step {bundle.state.step} ({bundle.path})", flush=True)
        tracker = Tracker.start(config, run, _known_mlflow_run(run, config, bundle))
        if bundle is not None and bundle.state.step >= config.optim.steps:
            print(f"Nothing to do: {run} has its {config.optim.steps} steps", flush=True)
            # A kill may have come between the last bundle and this.
            export_adapter(bundle.path, run / "adapter")
        else:
            _train(config, run, tracker, digest)
        tracker.finish("FINISHED")
    return run


def _train(config: RunConfig, run: Path, tracker: Tracker, digest: str) -> None:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = run / LAUNCHES / name
    RunRecord(launch=name, mlflow_run=tracker.run_id, mlflow_uri=named_uri(config)).write(run)
    (run / "config.json").write_text(config.model_dump_json(indent=1))
    progress = sys.stderr.isatty()
    uri = tracking_uri(config, run)
    launch = Launch(config, folder, uri, tracker.run_id, digest, progress)
    try:
        with joined_cluster(config.cluster):
            _fit(launch, name)
    except KeyboardInterrupt:
        bundle = newest_bundle(run)
        if bundle is not None and bundle.state.step >= config.optim.steps:
            return  # The wish to stop came during the last step.
        tracker.finish("KILLED")
        raise TrainingStoppedError(f"Interrupted. {_how_to_resume(run)}", 130) from None
    except ray.train.TrainingFailedError as error:
        tracker.finish("FAILED")
        cause = _root_cause(error)
        message = f"{cause}. {_how_to_resume(run)}"
        if isinstance(cause, UserError):
            raise UserError(message) from error
        raise TrainingStoppedError(message) from error


@contextlib.contextmanager
def _only_launch(run: Path) -> Iterator[None]:
    """Keep a second launch out of the run's folder for as long as this one is in it.

    Raises:
        UserError: If there is one already.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run}: another launch is running there") from None
        yield


def _known_mlflow_run(run: Path, config: RunConfig, bundle: Bundle | None) -> str | None:
    """The MLflow run to continue: the last launch's, unless this is another run by now."""
    record = RunRecord.read(run)
    if record is None or record.mlflow_uri != named_uri(config):
        return None
    if bundle is None:  # Nothing held the settings together so far.
        try:
            before = RunConfig.model_validate_json((run / "config.json").read_bytes())
        except (OSError, ValidationError):
            return None
        if changed_settings(before, config):
            return None
    return record.mlflow_run


def _fit(launch: Launch, name: str) -> None:
    cluster = launch.config.cluster
    on_gpus = uses_gpus(cluster)
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
            worker_runtime_env={"env_vars": worker_environment(on_gpus)},
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
    try:
        bundle = newest_bundle(run)
    except UserError as error:
        return str(error)
    if bundle is None:
        return "No checkpoint yet: the same command starts again"
    return f"The same command continues from step {bundle.state.step} ({bundle.path})"


def _root_cause(error: Exception) -> Exception:
    """The failure that brought the others down, in one line.

    When a rank goes, the others fail at their next collective: what a user can put right
    comes first, then a worker that died, then the first rank's own words.
    """
    failures = getattr(error, "worker_failures", {})
    causes = [
        (rank, getattr(failure, "_base_exc", failure)) for rank, failure in failures.items()
    ]
    if not causes:
        return RuntimeError(" ".join(str(error).split())[:500])

    def order(one: tuple[int, Exception]) -> tuple[bool, bool, int]:
        return not isinstance(one[1], UserError), not _died(one[1]), one[0]

    rank, cause = min(causes, key=order)
    if isinstance(cause, UserError):
        return cause
    if _died(cause):
        return RuntimeError(f"Worker {rank} died: killed, out of memory, or its node was lost")
    words = " ".join(str(cause).split())[-500:]
    return RuntimeError(f"Worker {rank} failed: {type(cause).__name__}: {words}")


def _died(cause: Exception) -> bool:
    return type(cause).__name__ == "WorkerHealthCheckFailedError"
