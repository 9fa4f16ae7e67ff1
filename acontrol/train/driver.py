"""The driver: resolves a run, opens its MLflow run and trains it with Ray.

RUN/
  config.json      the resolved config of the last launch
  run.json         launch and MLflow run, for the same command to continue
  adapter/         the newest exported adapter, for launch.generate
  events/          events for MLflow, sent or queued
  launches/*/      one folder per launch: Ray's own files and the checkpoints

MLflow's database is not in it, but shared: acontrol/runs/server.py.
"""

import secrets
import sys
import time
from collections.abc import Callable, Sequence

import ray.train
from ray.train import UserCallback

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.messages import counted, print_note
from acontrol.networks import locate
from acontrol.runs import storage
from acontrol.runs.cluster import joined_cluster
from acontrol.runs.inputs import DataInput
from acontrol.runs.record import Launch, RunRecord
from acontrol.runs.storage import StoragePath
from acontrol.runs.tracking import Tracker
from acontrol.train.checkpoint import export_adapter, newest_checkpoint
from acontrol.train.fit import fit, root_cause, run_worker
from acontrol.train.plan import RunPlan
from acontrol.train.resume import how_to_resume

LAUNCHES = "launches"


class TrainingStoppedError(Exception):
    """Training ended before its last step; says why and how to continue.

    Attributes:
        status: Exit status for a command: 130 after an interrupt, else 1.
    """

    def __init__(self, message: str, status: int = 1):
        """Store the message and the exit status."""
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
        callbacks: For Ray Train; they receive the workers' reports.
        worker: Runs in each worker process; tests and benchmarks wrap ``run_worker``.

    Raises:
        UserError: If the user must mend something: an option, the data, the base.
        TrainingStoppedError: If training was interrupted or a worker failed.
    """
    with RunPlan.locked(config) as plan:
        config, run, checkpoint = plan.config, plan.run, plan.checkpoint
        if checkpoint is not None:
            line = f"Continuing from step {checkpoint.state.step} ({checkpoint.path})"
            print(line, flush=True)
        shards = config.data.shards or ""
        data = DataInput.of_shards(plan.reader.index, shards)
        tracker = Tracker.start(config, run, plan.mlflow_run, data)
        if checkpoint is not None:
            tracker.event(line)
        if checkpoint is not None and checkpoint.state.step >= config.optim.steps:
            print(
                f"Nothing to do: {run} has its {counted(config.optim.steps, 'step')}",
                flush=True,
            )
            # The last launch may have been killed after its last checkpoint.
            export_adapter(checkpoint.path, run / "adapter")
            tracker.finish("FINISHED", show_page=False)
        else:
            _train(plan, tracker, callbacks, worker)
            tracker.finish("FINISHED")
    return run


def _train(
    plan: RunPlan,
    tracker: Tracker,
    callbacks: Sequence[UserCallback],
    worker: Callable[[dict[str, Launch]], None],
) -> None:
    config, run = plan.config, plan.run
    samples = (sample for shard in plan.reader.index.shards for sample in shard.samples)
    seen = locate.unseen_note(config.base, {(row.category, row.defect) for row in samples})
    scale = locate.squares_note(config.base, config.data.target_crop, config.data.target_px)
    for note in (seen, scale):
        if note is not None:
            print_note(note)
    if plan.has_features:
        print(f"Features: precomputed, {plan.features().path}", flush=True)
    elif plan.online_reason is not None:
        print(f"Features: computed online, since {plan.online_reason}", flush=True)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = run / LAUNCHES / name
    RunRecord.of(run, name, tracker.run_id, tracker.uri).write(run)
    storage.write(run / "config.json", config.model_dump_json(indent=1).encode())
    launch = Launch(
        config,
        folder,
        tracker.uri,
        tracker.run_id,
        plan.base_digest,
        show_progress=sys.stderr.isatty(),
        features=plan.has_features,
    )
    try:
        with joined_cluster(config.cluster):
            fit(launch, callbacks, worker)
    except KeyboardInterrupt:
        checkpoint = newest_checkpoint(run)
        if checkpoint is not None and checkpoint.state.step >= config.optim.steps:
            return  # It came during the last step.
        tracker.finish("KILLED")
        raise TrainingStoppedError(f"Interrupted. {how_to_resume(run)}", 130) from None
    except UserError:
        tracker.finish("FAILED")
        raise
    except ray.train.TrainingFailedError as error:
        tracker.finish("FAILED")
        cause = root_cause(error)
        message = f"{cause}. {how_to_resume(run)}"
        if isinstance(cause, UserError):
            raise UserError(message) from error
        raise TrainingStoppedError(message) from error
