"""Logging to MLflow, whether or not it can be reached.

Logging never waits for MLflow: events go to a queue in the run's folder, and a thread sends
them. Events may be sent twice: MLflow recognizes metrics by the time at which they were logged,
and files by their names.
"""

import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from PIL import Image

from acontrol.config import RunConfig
from acontrol.errors import one_line
from acontrol.messages import counted
from acontrol.runs import storage
from acontrol.runs.inputs import DataInput
from acontrol.runs.mlflow_client import (
    describe,
    is_refusal,
    last_steps,
    log_data,
    open_run,
    reaching,
    where_to_look,
)
from acontrol.runs.outbox import Event, EventQueue, RefusedError, Uploader
from acontrol.runs.record import RunRecord
from acontrol.runs.server import TrackingStore, tracking_store, without_password
from acontrol.runs.storage import StoragePath

log = logging.getLogger(__name__)
METRICS_A_REQUEST = 1000  # MLflow's limit.
FIRST_NAMES = (
    "learning_rate",
    "validation_loss",
)  # Each identifies the metrics logged with it.


def store_of(config: RunConfig, run: StoragePath) -> TrackingStore:
    """The store of a training run: named, or the one that it logged to before."""
    before = RunRecord.read(run)
    return tracking_store(config.tracking.uri, run, before.mlflow_uri if before else None)


class Tracker:
    """Logs to one MLflow run by way of the queue in ``FOLDER/events/RUN_ID``."""

    def __init__(
        self,
        uri: str,
        run_id: str,
        folder: StoragePath,
        *,
        adopt: bool = False,
        wait_s: float = 60.0,
    ):
        """Continue an MLflow run, without asking the server.

        Args:
            uri: Tracking server or database.
            run_id: Id of the run.
            folder: The run's folder. For one in an object store, events wait on this node.
            adopt: Whether to send events that earlier processes left; one tracker per launch.
            wait_s: How long ``finish`` waits for MLflow.
        """
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self.uri, self.run_id, self.wait_s = uri, run_id, wait_s
        self._is_alone = not storage.is_local(folder)
        self.folder = storage.on_this_node(folder) / "events" / run_id
        before = EventQueue.all_in(self.folder)
        # With an object store, the node that holds earlier events may be gone.
        elsewhere = FIRST_NAMES if self._is_alone else ()
        self._last_steps = last_steps(uri, run_id, elsewhere)
        for event in (event for queue in before for event, _ in queue.events()):
            if event["kind"] == "metrics":
                first = next(iter(event["values"]))
                self._last_steps[first] = max(event["step"], self._last_steps.get(first, -1))
        self._queue, self._lock = EventQueue.new(self.folder), threading.Lock()
        self._uploader = Uploader([*(before if adopt else []), self._queue], self._deliver)

    @classmethod
    def start(
        cls,
        config: RunConfig,
        run: StoragePath,
        known: str | None,
        data: DataInput | None = None,
    ) -> "Tracker":
        """Open the run's MLflow run. A new one gets config, data, versions and origin.

        Args:
            config: The resolved config.
            run: The run's folder.
            known: Id of an earlier launch's MLflow run; MLflow is then not contacted.
            data: What it trains on.

        Raises:
            UserError: If the tracking server cannot be reached or refuses.
        """
        return cls.open(
            store_of(config, run),
            config.tracking.experiment,
            config.tracking.run_name or f"train {run.name}",
            known,
            run,
            parent=config.tracking.parent_run,
            resolved=json.loads(config.model_dump_json()),
            data=data,
            wait_s=config.tracking.wait_s,
        )

    @classmethod
    def open(
        cls,
        store: TrackingStore,
        experiment: str,
        run_name: str,
        known: str | None,
        folder: StoragePath,
        *,
        parent: str | None = None,
        resolved: Mapping[str, Any] | None = None,
        data: DataInput | None = None,
        wait_s: float = 60.0,
    ) -> "Tracker":
        """Open an MLflow run by its id, or create one as ``open_run`` does.

        Args:
            store: Tracking server or database.
            experiment: Name of the experiment; created if new.
            run_name: Name of a new run.
            known: Id of an earlier run to continue; MLflow is then not contacted.
            folder: Where events are queued.
            parent: Id of the parent run.
            resolved: Settings to log with a new run.
            data: Data set to log with a new run.
            wait_s: How long ``finish`` waits for MLflow.

        Raises:
            UserError: If the tracking server cannot be reached or refuses.
        """
        uri = store.uri
        with reaching(uri):
            if known is None:
                run_id = open_run(store, experiment, run_name, parent=parent)
                client = mlflow.MlflowClient(tracking_uri=uri)
                if resolved is not None:
                    describe(client, run_id, resolved)
                if data is not None:
                    log_data(client, run_id, data)
                tracker = cls(uri, run_id, folder, adopt=True, wait_s=wait_s)
                experiment_id = client.get_run(run_id).info.experiment_id
                storage.write(tracker._experiment_file, experiment_id.encode())
            else:
                tracker = cls(uri, known, folder, adopt=True, wait_s=wait_s)
        print(tracker.where_to_look, flush=True)
        if known is not None:
            tracker._put("status", status="RUNNING")
        return tracker

    @property
    def where_to_look(self) -> str:
        """A line with the page of the run's experiment."""
        file = self._experiment_file  # Missing if another node opened the run.
        experiment_id = file.read_text() if file.exists() else None
        return f"MLflow:  {where_to_look(self.uri, experiment_id)}"

    @property
    def _experiment_file(self) -> Path:
        return self.folder / "experiment"

    @property
    def last_step(self) -> int:
        """The last training step logged; 0 before the first."""
        return self._last_steps.get(FIRST_NAMES[0], 0)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log a step's metrics, unless the first of them already has that step."""
        first = next(iter(metrics))
        with self._lock:
            if step <= self._last_steps.get(first, -1):
                return
            self._last_steps[first] = step
        self._put("metrics", step=step, values=dict(metrics))

    def log_next(self, metrics: Mapping[str, float]) -> None:
        """Log metrics without a training step, numbered consecutively."""
        self.log_metrics(metrics, self._last_steps.get(next(iter(metrics)), -1) + 1)

    def event(self, text: str) -> None:
        """Log an event, such as a skipped step, as a tag ``event.TIME``."""
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        self.set_tag(f"event.{stamp}.{int(now * 1000) % 1000:03}", text[:5000])

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._put("tag", name=name, value=value)

    def log_image(self, image: Image.Image, key: str, step: int) -> None:
        """Log an image with its step, under the names by which MLflow shows it."""
        now, token = int(time.time() * 1000), secrets.token_hex(8)
        stem = f"{key.replace('/', '~')}+step+{step}+timestamp+{now}+{token}"
        small = compress_image_size(image)
        try:
            for name, saved in ((f"{stem}.png", image), (f"{stem}+compressed.webp", small)):
                saved.save(file := self._own_file(name))
                self._put("file", file=str(file.relative_to(self.folder)), folder="images")
        except OSError as error:
            log.warning("the image of step %s is lost: %s", step, error)
        self.set_tag(MLFLOW_LOGGED_IMAGES, "True")

    def log_file(self, path: Path) -> None:
        """Log a copy of a file."""
        file = self._own_file(path.name)
        shutil.copyfile(path, file)
        self._put("file", file=str(file.relative_to(self.folder)), folder=None)

    def flush(self) -> None:
        """Flush all events to the disk, so that a later resume has them."""
        self._queue.sync()

    def leave(self) -> None:
        """Flush before this process ends.

        Events on this node alone are sent now, since later processes may not see them.
        """
        self.flush()
        if self._is_alone and not self._uploader.stop(self.wait_s):
            log.warning(
                "MLflow cannot be reached: events wait on this node, in %s", self.folder
            )

    def finish(self, status: str, *, show_page: bool = True) -> bool:
        """Close the run as FINISHED, FAILED or KILLED; whether MLflow has all events.

        Sends the events of the run's other processes too. After ``wait_s`` it prints how many
        are left.

        Args:
            status: The run's.
            show_page: Whether to print the experiment's page again, as after much output.
        """
        self._put("status", status=status)
        self._queue.close()
        queues = EventQueue.all_in(self.folder)
        others = [queue for queue in queues if queue.file != self._queue.file]
        self._uploader.queues = [*others, self._queue]
        server = f"MLflow at {without_password(self.uri)}"
        try:
            if not self._uploader.drain(min(5.0, self.wait_s)):
                print(f"Waiting up to {self.wait_s:g} s for {server}", flush=True)
            drained = self._uploader.stop(self.wait_s)
        except KeyboardInterrupt:  # Do not wait any longer.
            drained = self._uploader.stop(0)
        if show_page:
            print(self.where_to_look, flush=True)
        if not drained:
            waiting = sum(queue.waiting() for queue in self._uploader.queues)
            print(
                f"{server} cannot be reached: {counted(waiting, 'event waits', 'events wait')} "
                f"in {self.folder}; the same command sends them",
                flush=True,
            )
        return drained

    def _put(self, kind: str, **fields: Any) -> None:
        with self._lock:
            self._queue.append({"time": int(time.time() * 1000), "kind": kind, **fields})

    def _own_file(self, name: str) -> Path:
        folder = self.folder / "files" / secrets.token_hex(8)
        folder.mkdir(parents=True)
        return folder / name

    def _deliver(self, events: Sequence[Event]) -> None:
        """Send events to MLflow, in order."""
        metrics: list[Metric] = []
        try:
            for event in events:
                if event["kind"] == "metrics":
                    metrics += [
                        Metric(name, value, event["time"], event["step"])
                        for name, value in event["values"].items()
                    ]
                else:
                    self._send_metrics(metrics)
                    metrics = []
                    self._send(event)
            self._send_metrics(metrics)
        except MlflowException as error:
            if is_refusal(self.uri, error):
                raise RefusedError(one_line(error, 300)) from error
            raise

    def _send_metrics(self, metrics: Sequence[Metric]) -> None:
        for first in range(0, len(metrics), METRICS_A_REQUEST):
            batch = metrics[first : first + METRICS_A_REQUEST]
            self.client.log_batch(self.run_id, metrics=batch)

    def _send(self, event: Event) -> None:
        match event["kind"]:
            case "tag":
                self.client.set_tag(self.run_id, event["name"], event["value"])
            case "file":
                file = self.folder / event["file"]
                if file.exists():  # Otherwise it was already sent.
                    self.client.log_artifact(self.run_id, str(file), event["folder"])
                    shutil.rmtree(file.parent, ignore_errors=True)
            case "status" if event["status"] == "RUNNING":
                self.client.update_run(self.run_id, status="RUNNING")
            case "status":
                self.client.set_terminated(self.run_id, event["status"], event["time"])


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's monitor of a node's CPU, memory, disk and GPU use, logging to a tracker.

    MLflow's own loop asks the server before each measurement, and ends if it cannot be reached.
    """

    def __init__(self, tracker: Tracker, node: str):
        """Prepare a monitor; call ``start`` and ``finish``."""
        super().__init__(tracker.run_id, node_id=node, tracking_uri=tracker.uri)
        self.tracker = tracker

    def monitor(self) -> None:
        """Measure until ``finish``."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                self._shutdown_event.wait(self.sampling_interval)
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log under the node's name."""
        prefix = f"{self._metrics_prefix}{self.node_id}/"
        if metrics:
            self.tracker.log_next({f"{prefix}{key}": value for key, value in metrics.items()})
        for monitor in self.monitors:
            monitor.clear_metrics()
