"""What the machine is used for, to MLflow."""

from collections.abc import Mapping

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from acontrol.train.tracking import Tracker


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
