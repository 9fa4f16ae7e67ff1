"""Progress of a long command: a bar on a terminal, elsewhere a line every 20 seconds."""

import contextlib
import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

LINE_S = 20.0
_LINE = "{desc}: {n_fmt}/{total_fmt} in {elapsed}, {remaining} to go ({rate_fmt}{postfix})"

Item = TypeVar("Item")


@contextlib.contextmanager
def progress(
    desc: str, total: int | None, unit: str, *, initial: int = 0, leave: bool = True
) -> Iterator[Any]:
    """A tqdm bar on standard error; without a terminal, its state as a line.

    Args:
        desc: What is done.
        total: How many there are, if that is known.
        unit: Of what.
        initial: How many are done already.
        leave: Whether a bar stays on the terminal at its end.
    """
    about: dict[str, Any] = {"total": total, "initial": initial, "desc": desc, "unit": unit}
    if sys.stderr.isatty():
        with tqdm(**about, leave=leave) as bar:
            yield bar
        return
    # tqdm counts and measures; its own drawing, for a terminal, goes nowhere.
    with (
        open(os.devnull, "w") as nowhere,
        tqdm(**about, file=nowhere, bar_format=_LINE, mininterval=LINE_S) as bar,
        repeated(lambda: str(bar)),
    ):
        yield bar


def tracked(
    items: Iterable[Item], desc: str, unit: str = "it", *, leave: bool = True
) -> Iterator[Item]:
    """Items with their `progress`."""
    total = operator.length_hint(items) or None
    with progress(desc, total, unit, leave=leave) as bar:
        for item in items:
            yield item
            bar.update()


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on standard error what the command waits for; again every ``LINE_S`` seconds."""
    started = time.monotonic()
    _write(what)
    with repeated(lambda: f"{what}: {time.monotonic() - started:.0f} s so far"):
        yield


@contextlib.contextmanager
def repeated(line: Callable[[], str]) -> Iterator[None]:
    """Print a line on standard error every ``LINE_S`` seconds within the block."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(LINE_S):
            _write(line())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # In one piece, and not by the print() that Ray replaces.
    sys.stderr.flush()
