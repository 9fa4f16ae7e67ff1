"""One trial: a training run of its own that reports to Ray Tune.

It runs in Ray Tune's actor, as our only code outside acontrol that runs on workers.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from acontrol.config import RunConfig
from acontrol.data.lock import waiting
from acontrol.errors import UserError, one_line
from acontrol.runs.mlflow_client import last_values
from acontrol.runs.record import RunRecord
from acontrol.train.driver import TrainingStoppedError, run_training
from acontrol.train.plan import RunInputs
from acontrol.train.precompute import precompute
from tune.record import METRICS, Outcome, Sweep
from tune.space import Value

FAILURE = "failure.txt"


class ReportBeforeTheEnd(TuneReportCallback):
    """Forwards reports to Tune, except the last step's.

    The trial itself sends that one after the run: a scheduler may end the trial on it.
    """

    def __init__(self, last_step: int):
        """Store the run's last step."""
        super().__init__()
        self.last_step = last_step

    def after_report(
        self,
        run_context: object,
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Forward rank 0's metrics."""
        if metrics[0]["step"] < self.last_step:
            super().after_report(run_context, metrics, checkpoint)


def run_trial(values: Mapping[str, Value], sweep: Sweep) -> None:
    """Train with these values, resuming an earlier attempt at this trial.

    Args:
        values: The sampled values, by dotted key.
        sweep: The sweep.
    """
    trial = ray.tune.get_context().get_trial_id()
    folder = sweep.trial_folder(trial)
    before = Outcome.read(folder)
    if before is not None:
        # It had ended, but Tune was killed before it recorded that.
        if before.status == "failed":
            raise RuntimeError(before.failure)
        ray.tune.report(dict(before.metrics))
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        config = sweep.trial_config(trial, values)
        if config.data.features is not None:
            share_features(config)
        run_training(config, [ReportBeforeTheEnd(config.optim.steps)])
        ray.tune.report(last_metrics(config, folder))
    except (UserError, TrainingStoppedError, OSError, RuntimeError, ValueError) as error:
        (folder / FAILURE).write_text(one_line(error))
        raise


def share_features(config: RunConfig) -> None:
    """Precompute this trial's features, unless another trial has or is doing so."""
    features = RunInputs.resolve(config).features()
    if features.why_not() is None:
        return
    with waiting(features.root / features.digest):
        if features.why_not() is not None:
            precompute(config)


def last_metrics(config: RunConfig, folder: Path) -> dict[str, float]:
    """The metrics of the run's last step in MLflow.

    Raises:
        UserError: If MLflow lacks them.
        RuntimeError: If one is non-finite: training diverged.
    """
    record = RunRecord.read(folder)
    if record is None:
        raise UserError(f"{folder}: no record of its run")
    logged = last_values(config.tracking.uri or "", record.mlflow_run)
    metrics = {name: logged[name] for name in METRICS if name in logged}
    if "validation_loss" not in metrics:
        raise UserError(f"MLflow at {config.tracking.uri} lacks the run's last validation")
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise RuntimeError(f"the last {name} is {value}: training diverged")
    return {**metrics, "step": config.optim.steps}
