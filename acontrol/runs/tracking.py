"""What a run logs to MLflow, whether MLflow is there or not.

Whoever logs never waits for MLflow: what is logged goes to a queue in the run's folder, and
a thread sends it. All that is sent may be sent twice: metrics bear the time at which they were
logged, by which MLflow knows them again, and files their names.
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
from acontrol.runs import storage
from acontrol.runs.mlflow_client import (
    describe,
    is_refusal,
    last_steps,
    named_uri,
    open_run,
    reaching,
    tracking_uri,
    without_password,
)
from acontrol.runs.outbox import Event, EventQueue, RefusedError, Uploader
from acontrol.runs.storage import StoragePath

log = logging.getLogger(__name__)
METRICS_A_REQUEST = 1000  # MLflow takes no more.
FIRST_NAMES = ("learning_rate", "validation_loss")  # Each stands for those logged with it.


class Tracker:
    """Logs to one MLflow run by way of ``FOLDER/events/RUN_ID``; what is in there is logged."""

    def __init__(
        self,
        uri: str,
        run_id: str,
        folder: StoragePath,
        *,
        adopt: bool = False,
        wait_s: float = 60.0,
    ):
        """Continue a run, of which nothing is asked.

        Args:
            uri: Tracking server or database.
            run_id: Of the run.
            folder: The run's. Beside an object store, events lie on this node until they are
                sent.
            adopt: Whether to send what earlier processes left unsent: one tracker a launch.
            wait_s: How long ``finish`` waits for MLflow.
        """
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self.uri, self.run_id, self.wait_s = uri, run_id, wait_s
        self._is_alone = not storage.is_local(folder)
        self.folder = storage.on_this_node(folder) / "events" / run_id
        before = EventQueue.all_in(self.folder)
        # Beside an object store, the node that wrote what came before may be gone.
        elsewhere = FIRST_NAMES if self._is_alone else ()
        self._last_steps = last_steps(uri, run_id, elsewhere)
        for event in (event for one in before for event, _ in one.events()):
            if event["kind"] == "metrics":
                first = next(iter(event["values"]))
                self._last_steps[first] = max(event["step"], self._last_steps.get(first, -1))
        self._queue, self._lock = EventQueue.new(self.folder), threading.Lock()
        self._uploader = Uploader([*(before if adopt else []), self._queue], self._deliver)

    @classmethod
    def start(cls, config: RunConfig, run: StoragePath, known: str | None) -> "Tracker":
        """Open the run's MLflow run, or make it: config, versions and commit are logged once.

        Args:
            config: The resolved config.
            run: The run's folder.
            known: Id of the MLflow run of an earlier launch; then MLflow need not be there.

        Raises:
            UserError: If the tracking server cannot be reached or refuses.
        """
        return cls.open(
            tracking_uri(config, run),
            config.tracking.experiment,
            config.tracking.run_name or run.name,
            known,
            run,
            artifacts=None if named_uri(config) else Path(str(run)).resolve() / "artifacts",
            parent=config.tracking.parent_run,
            resolved=json.loads(config.model_dump_json()),
            wait_s=config.tracking.wait_s,
        )

    @classmethod
    def open(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        known: str | None,
        folder: StoragePath,
        *,
        artifacts: Path | None = None,
        parent: str | None = None,
        resolved: Mapping[str, Any] | None = None,
        wait_s: float = 60.0,
    ) -> "Tracker":
        """Open an MLflow run by its id, or make one as ``open_run`` does.

        Args:
            uri: Tracking server or database.
            experiment: Its name; made if it is new.
            run_name: Of a new run.
            known: Id of an earlier run to go on with; then MLflow need not be there.
            folder: Where events are until MLflow has them.
            artifacts: Where a new experiment keeps its files, for a local database.
            parent: Id of the run that this one is nested in.
            resolved: Settings to log with a new run.
            wait_s: How long ``finish`` waits for MLflow.

        Raises:
            UserError: If the tracking server cannot be reached or refuses.
        """
        with reaching(uri):
            if known is None:
                run_id = open_run(uri, experiment, run_name, artifacts=artifacts, parent=parent)
                if resolved is not None:
                    describe(mlflow.MlflowClient(tracking_uri=uri), run_id, resolved)
                return cls(uri, run_id, folder, adopt=True, wait_s=wait_s)
            tracker = cls(uri, known, folder, adopt=True, wait_s=wait_s)
        tracker._put("status", status="RUNNING")
        return tracker

    @property
    def last_step(self) -> int:
        """The last step of training that was logged; 0 before the first."""
        return self._last_steps.get(FIRST_NAMES[0], 0)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log a step's metrics, of which the first stands for all in being there already."""
        first = next(iter(metrics))
        with self._lock:
            if step <= self._last_steps.get(first, -1):
                return
            self._last_steps[first] = step
        self._put("metrics", step=step, values=dict(metrics))

    def log_next(self, metrics: Mapping[str, float]) -> None:
        """Log metrics that have no step of training, each time by the next number."""
        self.log_metrics(metrics, self._last_steps.get(next(iter(metrics)), -1) + 1)

    def event(self, text: str) -> None:
        """Note what happened, as a skipped step: a tag ``event.TIME``, which MLflow lists."""
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        self.set_tag(f"event.{stamp}.{int(now * 1000) % 1000:03}", text[:5000])

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._put("tag", name=name, value=value)

    def log_image(self, image: Image.Image, key: str, step: int) -> None:
        """Store a picture with its step, under the names by which MLflow shows it."""
        now, token = int(time.time() * 1000), secrets.token_hex(8)
        stem = f"{key.replace('/', '~')}+step+{step}+timestamp+{now}+{token}"
        small = compress_image_size(image)
        try:
            for name, one in ((f"{stem}.png", image), (f"{stem}+compressed.webp", small)):
                one.save(file := self._own_file(name))
                self._put("file", file=str(file.relative_to(self.folder)), folder="images")
        except OSError as error:
            log.warning("the picture of step %s is lost: %s", step, error)
        self.set_tag(MLFLOW_LOGGED_IMAGES, "True")

    def log_file(self, path: Path) -> None:
        """Store a copy of a file."""
        file = self._own_file(path.name)
        shutil.copyfile(path, file)
        self._put("file", file=str(file.relative_to(self.folder)), folder=None)

    def flush(self) -> None:
        """Have the disk hold what is logged: a resume from here on has all of it."""
        self._queue.sync()

    def leave(self) -> None:
        """This process ends, and nothing more is logged here.

        Where the run's folder is this node's own, no later process may see what waits in it.
        """
        self.flush()
        if self._is_alone and not self._uploader.stop(self.wait_s):
            log.warning("MLflow is away: events wait on this node, in %s", self.folder)

    def finish(self, status: str) -> bool:
        """Close the run, FINISHED, FAILED or KILLED; whether MLflow has all of it by now.

        Sends what the run's other processes left too. After ``wait_s`` it says what waits.
        """
        self._put("status", status=status)
        self._queue.close()
        others = [one for one in EventQueue.all_in(self.folder) if one.file != self._queue.file]
        self._uploader.queues = [*others, self._queue]
        there = f"MLflow at {without_password(self.uri)}"
        try:
            if not self._uploader.drain(min(5.0, self.wait_s)):
                print(f"Waiting up to {self.wait_s:g} s for {there}", flush=True)
            drained = self._uploader.stop(self.wait_s)
        except KeyboardInterrupt:  # Who cannot wait need not.
            drained = self._uploader.stop(0)
        if not drained:
            waiting = sum(one.waiting() for one in self._uploader.queues)
            lie = f"{waiting} events wait in {self.folder}; the same command sends them"
            print(f"{there} is away: {lie}", flush=True)
        return drained

    def _put(self, kind: str, **what: Any) -> None:
        with self._lock:
            self._queue.append({"time": int(time.time() * 1000), "kind": kind, **what})

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
                raise RefusedError(" ".join(str(error).split())[:300]) from error
            raise

    def _send_metrics(self, metrics: Sequence[Metric]) -> None:
        for first in range(0, len(metrics), METRICS_A_REQUEST):
            some = metrics[first : first + METRICS_A_REQUEST]
            self.client.log_batch(self.run_id, metrics=some)

    def _send(self, event: Event) -> None:
        match event["kind"]:
            case "tag":
                self.client.set_tag(self.run_id, event["name"], event["value"])
            case "file":
                file = self.folder / event["file"]
                if file.exists():  # Else it was sent before.
                    self.client.log_artifact(self.run_id, str(file), event["folder"])
                    shutil.rmtree(file.parent, ignore_errors=True)
            case "status" if event["status"] == "RUNNING":
                self.client.update_run(self.run_id, status="RUNNING")
            case "status":
                self.client.set_terminated(self.run_id, event["status"], event["time"])


class SystemMetrics(SystemMetricsMonitor):
    """Processor, memory, disk and GPU use of a node, by MLflow's monitor, to a tracker.

    MLflow's own loop asks the server before each measurement, and ends where it is away.
    """

    def __init__(self, tracker: Tracker, node: str):
        """Take the tracker and the node's name; ``start`` and ``finish`` it."""
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
        found = {
            f"{self._metrics_prefix}{self.node_id}/{key}": one for key, one in metrics.items()
        }
        if found:
            self.tracker.log_next(found)
        for one in self.monitors:
            one.clear_metrics()
