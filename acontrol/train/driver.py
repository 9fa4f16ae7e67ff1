"""The driver: checks what a run is, opens its folder and MLflow run, and has Ray train it.

RUN/
  config.json      the resolved config of the last launch
  run.json         launch and MLflow run, by which the same command continues
  adapter/         the newest exported adapter: what launch.generate takes
  events/          what goes to MLflow, sent or not yet
  launches/*/      one folder a launch: Ray's own files and the checkpoint checkpoints
  mlflow.db        MLflow, unless a server was named; artifacts/ beside it
"""

import secrets
import sys
import time
from collections.abc import Callable, Sequence

import ray.train
from ray.train import UserCallback

from acontrol.config import RunConfig
from acontrol.data.features import feature_folder
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError
from acontrol.networks import hub, locate
from acontrol.runs import storage
from acontrol.runs.cluster import joined_cluster
from acontrol.runs.lock import only_launch
from acontrol.runs.mlflow_client import named_uri, tracking_uri
from acontrol.runs.paths import absolute
from acontrol.runs.record import Launch, RunRecord
from acontrol.runs.storage import StoragePath
from acontrol.runs.tracking import Tracker
from acontrol.train.checkpoint import export_adapter, newest_checkpoint
from acontrol.train.fit import fit, root_cause, run_worker
from acontrol.train.plan import unmet, unnamed
from acontrol.train.resume import check_continues, how_to_resume, known_mlflow_run

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


def run_training(
    config: RunConfig,
    callbacks: Sequence[UserCallback] = (),
    worker: Callable[[dict[str, Launch]], None] = run_worker,
) -> StoragePath:
    """Train, or continue, the run in ``config.output``; returns its folder.

    Args:
        config: The run.
        callbacks: Of Ray Train, told of the workers' reports.
        worker: What each worker process runs; another one may surround ``run_worker``.

    Raises:
        UserError: If something about the config, the data or the base must be put right.
        TrainingStoppedError: If it ended early: interrupted, or a worker failed.
    """
    config = absolute(config)
    if unnamed(config):
        raise UserError("; ".join(unmet(config)))
    run = storage.storage_path(config.output or "")
    reader = ShardReader(config.data.shards or "", config.data.cache_dir)
    if config.sga.scale == 0:
        raise UserError("sga.scale is 0: the adapter would not be used, so it cannot learn")
    if config.init is not None:
        from acontrol.interop.begin import check_beginning  # It brings diffusers.

        check_beginning(config.init)
    digest = locate.digest(config.base)
    hub.fetch(config.base)
    with only_launch(run):
        checkpoint = newest_checkpoint(run)
        if checkpoint is not None:
            check_continues(checkpoint, config, reader.index.digest, digest)
            line = f"Continuing from step {checkpoint.state.step} ({checkpoint.path})"
            print(line, flush=True)
        tracker = Tracker.start(config, run, known_mlflow_run(run, config, checkpoint))
        if checkpoint is not None:
            tracker.event(line)
        if checkpoint is not None and checkpoint.state.step >= config.optim.steps:
            print(f"Nothing to do: {run} has its {config.optim.steps} steps", flush=True)
            # A kill may have come between the last checkpoint and this.
            export_adapter(checkpoint.path, run / "adapter")
        else:
            features = has_features(config, reader, digest)
            _train(config, run, tracker, digest, features, callbacks, worker)
        tracker.finish("FINISHED")
    return run


def has_features(config: RunConfig, reader: ShardReader, digest: str) -> bool:
    """Whether training reads precomputed features; says so either way, if any were named."""
    if config.data.features is None:
        return False
    folder = feature_folder(config, reader, digest)
    reason = folder.why_not()
    if reason is None:
        print(f"Features: precomputed, {folder.path}", flush=True)
    else:
        print(f"Features: computed online, since {reason}", flush=True)
    return reason is None


def _train(
    config: RunConfig,
    run: StoragePath,
    tracker: Tracker,
    digest: str,
    has_features: bool,
    callbacks: Sequence[UserCallback],
    worker: Callable[[dict[str, Launch]], None],
) -> None:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = run / LAUNCHES / name
    RunRecord(launch=name, mlflow_run=tracker.run_id, mlflow_uri=named_uri(config)).write(run)
    storage.write(run / "config.json", config.model_dump_json(indent=1).encode())
    progress = sys.stderr.isatty()
    uri = tracking_uri(config, run)
    launch = Launch(config, folder, uri, tracker.run_id, digest, progress, has_features)
    try:
        with joined_cluster(config.cluster):
            fit(launch, callbacks, worker)
    except KeyboardInterrupt:
        checkpoint = newest_checkpoint(run)
        if checkpoint is not None and checkpoint.state.step >= config.optim.steps:
            return  # The wish to stop came during the last step.
        tracker.finish("KILLED")
        raise TrainingStoppedError(f"Interrupted. {how_to_resume(run)}", 130) from None
    except ray.train.TrainingFailedError as error:
        tracker.finish("FAILED")
        cause = root_cause(error)
        message = f"{cause}. {how_to_resume(run)}"
        if isinstance(cause, UserError):
            raise UserError(message) from error
        raise TrainingStoppedError(message) from error
