"""Failures of workers: which of them a restart can help, and which one to name."""

import ray.train
from ray.train import UserCallback

from acontrol.errors import UserError


class StopOnUserError(UserCallback):
    """Ends training when a worker meets what only the user can put right, as damaged data.

    A restart would meet it again. Ray's controller asks this before it counts failures, and
    never restarts after an error of its own, which this one becomes.
    """

    def after_exception(
        self, run_context: object, worker_exceptions: dict[int, Exception]
    ) -> None:
        """Raise the first rank's error of that kind, if there is one."""
        for _, failure in sorted(worker_exceptions.items()):
            cause = _raised(failure)
            if isinstance(cause, UserError):
                raise ray.train.ControllerError(cause)


def root_cause(error: Exception) -> Exception:
    """The failure that brought the others down, in one line.

    When a rank goes, the others fail at their next collective: what a user can put right
    comes first, then a worker that died, then the first rank's own words.
    """
    stopped = getattr(error, "controller_failure", None)
    if isinstance(stopped, UserError):
        return stopped
    failures = getattr(error, "worker_failures", {})
    causes = [(rank, _raised(failure)) for rank, failure in failures.items()]
    if not causes:
        return RuntimeError(" ".join(str(error).split())[:500])

    def order(one: tuple[int, Exception]) -> tuple[bool, bool, int]:
        return not isinstance(one[1], UserError), not _died(one[1]), one[0]

    rank, cause = min(causes, key=order)
    if isinstance(cause, UserError):
        return cause
    if _died(cause):
        return RuntimeError(f"Worker {rank} died: killed, out of memory, or its node was lost")
    words = " ".join(str(cause).split())[-500:]
    return RuntimeError(f"Worker {rank} failed: {type(cause).__name__}: {words}")


def _raised(failure: Exception) -> Exception:
    """What the worker raised, out of Ray's wrapping."""
    return getattr(failure, "_base_exc", failure)


def _died(cause: Exception) -> bool:
    return type(cause).__name__ == "WorkerHealthCheckFailedError"
