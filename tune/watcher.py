"""Callbacks of the sweep's driver as trials begin and end."""

import math
import time
from typing import Any

import ray
import ray.tune
from ray.tune.experiment import Trial
from ray.util.placement_group import PlacementGroup, remove_placement_group

from acontrol.runs.mlflow_client import close_nested
from tune.record import METRICS, Outcome, Sweep, run_name
from tune.trial import FAILURE

# Ray Train's own cleaner usually frees the workers of a stopped trial within seconds. It gives
# up if the cluster's control store answers late.
PATIENCE_S = 15.0


class SweepWatcher(ray.tune.Callback):
    """Records how trials end, in their folders and in MLflow, and frees their resources.

    Ray stores it in the sweep's state, so it holds only data.
    """

    def __init__(self, sweep: Sweep):
        """Store the sweep."""
        self.sweep = sweep
        self.ended: dict[str, float] = {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Print the trial's values."""
        print(f"{run_name(trial.trial_id)}: {_words(trial.config)}", flush=True)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Record a trial that finished, or that the scheduler stopped."""
        config = self.sweep.trial_config(trial.trial_id, trial.config)
        metrics = _metrics(trial)
        whole = metrics.get("step", 0) >= config.optim.steps
        outcome = Outcome(
            status="finished" if whole else "stopped", values=trial.config, metrics=metrics
        )
        self._note(trial, outcome)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Record a trial that failed."""
        file = self.sweep.trial_folder(trial.trial_id) / FAILURE
        failure = file.read_text() if file.exists() else "its process died"
        self._note(
            trial,
            Outcome(
                status="failed", values=trial.config, metrics=_metrics(trial), failure=failure
            ),
        )

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Free what trials that ended a while ago still hold."""
        now = time.monotonic()
        due = [trial for trial, since in self.ended.items() if now - since > PATIENCE_S]
        for trial in due:
            del self.ended[trial]
            release(self.sweep, trial)

    def _note(self, trial: Trial, outcome: Outcome) -> None:
        folder = self.sweep.trial_folder(trial.trial_id)
        if Outcome.read(folder) is not None:  # Noted before the sweep was killed.
            return
        outcome.write(folder)
        self.ended[trial.trial_id] = time.monotonic()
        close(self.sweep, trial.trial_id, outcome)
        value = outcome.metrics.get(self.sweep.objective)
        score = "" if value is None else f", {self.sweep.objective} {value:.4g}"
        step = f" at step {outcome.metrics['step']:g}" if "step" in outcome.metrics else ""
        cause = f": {outcome.failure}" if outcome.failure else ""
        name = run_name(trial.trial_id)
        print(f"{name} {outcome.status}{step}{score}{cause}", flush=True)


def close(sweep: Sweep, trial: str, outcome: Outcome) -> None:
    """End a trial's MLflow run: Ray kills a trial's process without notice."""
    tags: dict[str, str] = {"sweep.outcome": outcome.status}
    if outcome.failure:
        tags["sweep.failure"] = outcome.failure[:4000]
    close_nested(
        sweep.mlflow_uri,
        sweep.run.tracking.experiment,
        sweep.parent_run,
        run_name(trial),
        "FAILED" if outcome.status == "failed" else "FINISHED",
        tags,
    )


def release(sweep: Sweep, trial: str) -> None:
    """Free what is still reserved for the workers of a trial that has ended."""
    table = ray.util.placement_group_table()
    for file in sweep.trial_folder(trial).glob("launches/*/placement-group"):
        held = table.get(name := file.read_text())
        if held is not None and held["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _metrics(trial: Trial) -> dict[str, float]:
    result = trial.last_result or {}
    metrics = {name: float(result[name]) for name in METRICS if name in result}
    # A diverged trial reports non-finite values.
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _words(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )
