"""The driver: checks what a run is, opens its folder and MLflow run, and has Ray train it.

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
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray.train
from pydantic import ValidationError
from ray.train import UserCallback

from acontrol import base as base_models
from acontrol import hub
from acontrol.config import RunConfig, UserError
from acontrol.data.features import feature_folder
from acontrol.data.reader import ShardReader
from acontrol.interop.begin import check_beginning
from acontrol.train.checkpoint import Bundle, changed_settings, export_adapter, newest_bundle
from acontrol.train.cluster import joined_cluster
from acontrol.train.failures import root_cause
from acontrol.train.fit import fit
from acontrol.train.needs import unmet, unnamed
from acontrol.train.paths import absolute
from acontrol.train.tracking import Tracker, named_uri, tracking_uri
from acontrol.train.worker import Launch, RunRecord

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


def run_training(config: RunConfig, callbacks: Sequence[UserCallback] = ()) -> Path:
    """Train, or continue, the run in ``config.output``; returns its folder.

    Args:
        config: The run.
        callbacks: Of Ray Train, told of the workers' reports.

    Raises:
        UserError: If something about the config, the data or the base must be put right.
        TrainingStoppedError: If it ended early: interrupted, or a worker failed.
    """
    base_models.quieten()
    config = absolute(config)
    if unnamed(config):
        raise UserError("; ".join(unmet(config)))
    run = Path(config.output or "")
    reader = ShardReader(config.data.shards or "", config.data.cache_dir)
    if config.sga.scale == 0:
        raise UserError("sga.scale is 0: the adapter would not be used, so it cannot learn")
    if config.init is not None:
        check_beginning(config.init)
    digest = base_models.digest(config.base)
    hub.fetch(config.base)
    with only_launch(run):
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
            features = has_features(config, reader, digest)
            _train(config, run, tracker, digest, features, callbacks)
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
    run: Path,
    tracker: Tracker,
    digest: str,
    has_features: bool,
    callbacks: Sequence[UserCallback],
) -> None:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = run / LAUNCHES / name
    RunRecord(launch=name, mlflow_run=tracker.run_id, mlflow_uri=named_uri(config)).write(run)
    (run / "config.json").write_text(config.model_dump_json(indent=1))
    progress = sys.stderr.isatty()
    uri = tracking_uri(config, run)
    launch = Launch(config, folder, uri, tracker.run_id, digest, progress, has_features)
    try:
        with joined_cluster(config.cluster):
            fit(launch, callbacks)
    except KeyboardInterrupt:
        bundle = newest_bundle(run)
        if bundle is not None and bundle.state.step >= config.optim.steps:
            return  # The wish to stop came during the last step.
        tracker.finish("KILLED")
        raise TrainingStoppedError(f"Interrupted. {_how_to_resume(run)}", 130) from None
    except ray.train.TrainingFailedError as error:
        tracker.finish("FAILED")
        cause = root_cause(error)
        message = f"{cause}. {_how_to_resume(run)}"
        if isinstance(cause, UserError):
            raise UserError(message) from error
        raise TrainingStoppedError(message) from error


@contextlib.contextmanager
def only_launch(run: Path) -> Iterator[None]:
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
