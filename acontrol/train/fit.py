"""One launch on Ray Train: its configuration, waiting for it, and its failures."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import ray.train
from ray.train import FailureConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from acontrol.errors import UserError, one_line
from acontrol.messages import counted
from acontrol.progress import waiting
from acontrol.runs import storage
from acontrol.runs.cluster import not_started, scaling, uses_gpus, worker_environment
from acontrol.runs.record import Launch

# Errors of a program: met twice in a row without a checkpoint between, they will be met again.
MISTAKES = (TypeError, AttributeError, NameError, ImportError, AssertionError, LookupError)


class RepeatedError(RuntimeError):
    """An error that restarts do not mend."""


class Restarts(UserCallback):
    """Says why workers are restarted, and ends training where they would fail again.

    That is after a UserError, such as damaged data, and when the same mistake of the program
    ends them twice. Ray's controller calls this before it counts failures, and never restarts
    after an error of its own, which this one becomes.
    """

    def __init__(self, allowed: int):
        """``allowed`` is ``cluster.max_failures``."""
        self._allowed, self._failures = allowed, 0
        self._mistake: str | None = None

    def after_report(
        self, run_context: object, metrics: list[dict[str, object]], checkpoint: object
    ) -> None:
        """Forget the last failure, as training went on."""
        self._mistake = None

    def after_exception(
        self, run_context: object, worker_exceptions: dict[int, Exception]
    ) -> None:
        """Print the failure, or end training."""
        rank, cause = _culprit(worker_exceptions)
        if isinstance(cause, UserError):
            raise ray.train.ControllerError(cause)
        line = _described(rank, cause)
        if isinstance(cause, MISTAKES) and line == self._mistake:
            failure = RepeatedError(f"{line}, again after a restart")
            raise ray.train.ControllerError(failure)
        self._mistake = line
        self._failures += 1
        if self._allowed < 0 or self._failures <= self._allowed:
            print(f"{line}. Restarting from the newest checkpoint", flush=True)


def root_cause(error: Exception) -> Exception:
    """The failure that caused the others, in one line.

    When a rank fails, the others fail at their next collective. A UserError comes first, then a
    worker that died, then a mistake of the program, then the first rank's error.
    """
    stopped = getattr(error, "controller_failure", None)
    if isinstance(stopped, (UserError, RepeatedError)):
        return stopped
    failures = getattr(error, "worker_failures", {})
    if not failures:
        return RuntimeError(one_line(error, 500))
    rank, cause = _culprit(failures)
    return cause if isinstance(cause, UserError) else RuntimeError(_described(rank, cause))


def _culprit(failures: Mapping[int, Exception]) -> tuple[int, Exception]:
    """The rank that failed first, as far as can be told, and its own error."""

    def order(failure: tuple[int, Exception]) -> tuple[bool, bool, bool, int]:
        rank, cause = failure
        kinds = isinstance(cause, UserError), _died(cause), isinstance(cause, MISTAKES)
        return not kinds[0], not kinds[1], not kinds[2], rank

    # Ray wraps a worker's own exception.
    causes = ((rank, getattr(error, "_base_exc", error)) for rank, error in failures.items())
    return min(causes, key=order)


def _described(rank: int, cause: Exception) -> str:
    if _died(cause):
        return f"Worker {rank} died: killed, out of memory, or its node was lost"
    reason = " ".join(str(cause).split())[-500:]
    return f"Worker {rank} failed: {type(cause).__name__}: {reason}"


def _died(cause: Exception) -> bool:
    return type(cause).__name__ == "WorkerHealthCheckFailedError"


# Seconds for a hung worker to print where it hangs, before the others give it up.
GRACE_S = 60


def fit(
    launch: Launch,
    callbacks: Sequence[UserCallback],
    worker: Callable[[dict[str, Launch]], None],
) -> None:
    """Train on the joined cluster until the last step, or until asked to stop.

    Args:
        launch: What to train.
        callbacks: For Ray Train; they receive the workers' reports.
        worker: Runs in each worker process.

    Raises:
        KeyboardInterrupt: On SIGINT or SIGTERM.
        UserError: If the workers did not start within ``cluster.start_s``.
        ray.train.TrainingFailedError: If workers failed and are not restarted.
    """
    cluster = launch.config.cluster
    on_gpus = uses_gpus(cluster)
    # Ray Train's controller and workers read these from this process's environment. Its own
    # print() takes the progress bar's messages apart.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(cluster.hang_s + GRACE_S)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    path, filesystem = storage.for_ray(launch.folder.parent)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"launch": launch},
        scaling_config=scaling(cluster, on_gpus),
        torch_config=TorchConfig(
            backend="nccl" if on_gpus else "gloo", timeout_s=int(cluster.hang_s + GRACE_S)
        ),
        run_config=ray.train.RunConfig(
            name=launch.folder.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=cluster.max_failures,
                max_preemption_failures=cluster.max_preemptions,
            ),
            callbacks=[Restarts(cluster.max_failures), *callbacks],
            worker_runtime_env={"env_vars": worker_environment(on_gpus)},
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    _fit_until_stopped(trainer, launch, on_gpus)


def _fit_until_stopped(trainer: TorchTrainer, launch: Launch, on_gpus: bool) -> None:
    """Wait for training. The first SIGINT or SIGTERM asks for a checkpoint, the second aborts.

    Ray runs in its own thread, because in the main one it would handle SIGINT itself and abort
    the workers at once.
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
        storage.write(launch.stop_file, b"")
        print("Stopping after this step, with a checkpoint; again to stop at once", flush=True)

    thread = threading.Thread(target=fit, daemon=True)
    in_main_thread = threading.current_thread() is threading.main_thread()
    watched = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = {number: signal.signal(number, ask_to_stop) for number in watched}
    cluster = launch.config.cluster
    starting = contextlib.ExitStack()
    begun, started = time.monotonic(), False
    try:
        workers = counted(cluster.num_workers, "worker")
        starting.enter_context(waiting(f"Starting {workers}: libraries, networks and data"))
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.5)
            if started:
                continue
            started = launch.reserved_file.exists()
            if started:
                starting.close()
            elif time.monotonic() - begun > cluster.start_s:
                raise UserError(not_started(cluster, on_gpus))
    finally:
        starting.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if outcome[0] is not None:
        raise outcome[0]
    if launch.stop_file.exists():
        raise KeyboardInterrupt


def run_worker(settings: dict[str, Launch]) -> None:
    """Entry point of a worker."""
    from acontrol.networks.compilation import attention_by
    from acontrol.train.worker import train_rank

    launch = settings["launch"]
    with attention_by(launch.config.runtime.attention):
        train_rank(launch)
