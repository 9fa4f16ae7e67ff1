"""MLflow: one run for a training run, however often it is restarted."""

import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image

from acontrol._version import __version__
from acontrol.config import RunConfig, UserError
from acontrol.train.storage import Place

log = logging.getLogger(__name__)
# Seven attempts with growing pauses, the default, would hold training up for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
# Making the SQLite tables is no news.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

VERSIONS = ("torch", "deepspeed", "ray", "diffusers", "transformers", "mlflow")


def named_uri(config: RunConfig) -> str | None:
    """The server or database of the config, else of the environment, else none."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")


def tracking_uri(config: RunConfig, run: Place) -> str:
    """The named server or database, else one in the run's folder.

    Raises:
        UserError: If the run lies in an object store, where no database can, and none is named.
    """
    if named := named_uri(config):
        return named
    if not isinstance(run, Path):
        raise UserError(
            f"--output {run}: MLflow's database cannot lie there; name a server with "
            "--tracking.uri or MLFLOW_TRACKING_URI"
        )
    return own_database(run)


def own_database(run: Path) -> str:
    """Where MLflow is for a run that names no server."""
    return f"sqlite:///{run.resolve() / 'mlflow.db'}"


class Tracker:
    """Logs to one MLflow run.

    Metrics are buffered and sent together; a step that the run already has is not sent
    again, so steps that a resume repeats (with the same values) appear once.
    """

    def __init__(self, uri: str, run_id: str, *, max_buffer: int = 200):
        """Continue a run that ``start`` made."""
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self.uri, self.run_id = uri, run_id
        self.max_buffer = max_buffer
        self._buffer: list[Metric] = []
        self._last_steps = {
            name: max(
                (one.step for one in self.client.get_metric_history(run_id, name)), default=-1
            )
            for name in ("loss", "learning_rate", "validation_loss")
        }

    @classmethod
    def start(cls, config: RunConfig, run: Place, known: str | None) -> "Tracker":
        """Open the run's MLflow run, or make it: config, versions and commit are logged once.

        Args:
            config: The resolved config.
            run: The run's folder.
            known: Id of the MLflow run of an earlier launch.

        Raises:
            UserError: If the tracking server cannot be reached or refuses.
        """
        tracker = cls.open(
            tracking_uri(config, run),
            config.tracking.experiment,
            config.tracking.run_name or run.name,
            known,
            artifacts=None if named_uri(config) else Path(str(run)).resolve() / "artifacts",
            parent=config.tracking.parent_run,
        )
        if known is None:
            tracker.describe(json.loads(config.model_dump_json()))
        return tracker

    @classmethod
    def open(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        known: str | None,
        artifacts: Path | None,
        parent: str | None = None,
    ) -> "Tracker":
        """Open an MLflow run by its id, or make one.

        Args:
            uri: Tracking server or database.
            experiment: Its name; made if it is new.
            run_name: Of a new run.
            known: Id of an earlier run to go on with.
            artifacts: Where a new experiment keeps its files, for a local database.
            parent: Id of the run that this one is nested in. Under it a name stands for one
                run, so that a launch killed before it noted its run's id finds it again.

        Raises:
            UserError: If the tracking server cannot be reached or refuses.
        """
        try:
            client = mlflow.MlflowClient(tracking_uri=uri)
            if known is not None:
                client.update_run(known, status="RUNNING")
                return cls(uri, known)
            found = client.get_experiment_by_name(experiment)
            if found is not None:
                experiment_id = found.experiment_id
            else:
                experiment_id = client.create_experiment(
                    experiment, artifact_location=artifacts.as_uri() if artifacts else None
                )
            tags = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
            if parent and (before := _nested(client, experiment_id, parent, run_name)):
                client.update_run(before, status="RUNNING")
                return cls(uri, before)
            created = client.create_run(experiment_id, run_name=run_name, tags=tags)
            return cls(uri, created.info.run_id)
        except MlflowException as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"MLflow at {uri}: {reason}") from error

    def describe(self, resolved: Mapping[str, Any]) -> None:
        """Log settings, versions and the code's commit."""
        params = [
            Param(f"{group}.{name}" if name else group, str(value))
            for group, settings in resolved.items()
            for name, value in (
                settings.items() if isinstance(settings, dict) else [("", settings)]
            )
        ]
        tags = [RunTag(f"version.{name}", version(name)) for name in VERSIONS]
        tags.append(RunTag("version.acontrol", __version__))
        tags.append(RunTag("version.python", platform.python_version()))
        if commit := git_commit():
            tags.append(RunTag("mlflow.source.git.commit", commit))
        self.client.log_batch(self.run_id, params=params, tags=tags)
        self.client.log_dict(self.run_id, dict(resolved), "config.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffer a step's metrics, of which the first stands for all in being there already."""
        first = next(iter(metrics))
        if step <= self._last_steps.get(first, -1):
            return
        now = int(time.time() * 1000)
        self._buffer += [Metric(name, value, now, step) for name, value in metrics.items()]
        self._last_steps[first] = step
        if len(self._buffer) >= self.max_buffer:
            self.flush()

    def flush(self) -> None:
        """Send what is buffered; what cannot be sent waits for the next time."""
        if not self._buffer:
            return
        try:
            self.client.log_batch(self.run_id, metrics=self._buffer)
            self._buffer = []
        except MlflowException as error:
            log.warning("MLflow takes no metrics now, they wait: %s", str(error)[:200])

    def log_image(self, image: Image.Image, key: str, step: int) -> None:
        """Store a picture with its step; training goes on if it cannot be stored."""
        try:
            self.client.log_image(self.run_id, image, key=key, step=step)
        except MlflowException as error:
            log.warning(
                "MLflow did not take the picture of step %s: %s", step, str(error)[:200]
            )

    def watch_system(self, node: str) -> SystemMetricsMonitor:
        """Start logging this node's processor, memory, disk and GPU use; call its finish()."""
        monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=True, node_id=node, tracking_uri=self.uri
        )
        monitor.start()
        return monitor

    def finish(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.flush()
        self.client.set_terminated(self.run_id, status)


def close_nested(
    uri: str, experiment: str, parent: str, run_name: str, status: str, tags: Mapping[str, str]
) -> None:
    """Give a run in another one its end, whoever began it, also if nobody did.

    Bookkeeping alone: what cannot be sent is said and lost.
    """
    try:
        tracker = Tracker.open(uri, experiment, run_name, None, None, parent=parent)
        for name, value in tags.items():
            tracker.client.set_tag(tracker.run_id, name, value)
        tracker.finish(status)
    except (MlflowException, UserError) as error:
        log.warning("MLflow did not close %s: %s", run_name, str(error)[:200])


def _nested(
    client: mlflow.MlflowClient, experiment_id: str, parent: str, run_name: str
) -> str | None:
    """Id of the run of this name in another one."""
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'"
    for run in client.search_runs([experiment_id], query, max_results=50_000):
        if run.info.run_name == run_name:
            return str(run.info.run_id)
    return None


def git_commit() -> str | None:
    """The commit of the code: ACONTROL_COMMIT, else of the checkout that holds this file."""
    if commit := os.environ.get("ACONTROL_COMMIT"):
        return commit
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
