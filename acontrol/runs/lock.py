"""One launch at a time in a run's folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from acontrol.errors import UserError
from acontrol.runs.storage import StoragePath


@contextlib.contextmanager
def only_launch(run: StoragePath) -> Iterator[None]:
    """Keep a second launch out of the run's folder for as long as this one is in it.

    An object store has no locks: there the later launch takes the run over, and the earlier
    one ends before it writes its next checkpoint.

    Raises:
        UserError: If there is one already.
    """
    if not isinstance(run, Path):
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run}: another launch is running there") from None
        yield
