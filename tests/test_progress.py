"""What a long command shows: a bar on a terminal, lines elsewhere."""

import io
import sys
import threading
from collections.abc import Callable

import pytest

from acontrol import progress


class Stream(io.StringIO):
    """Standard error, that tells when a line has come."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal, self.written = is_terminal, threading.Event()

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        if text.endswith("\n"):
            self.written.set()
        return count

    def wait(self) -> None:
        self.written.clear()
        assert self.written.wait(60)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Stream]:
    def make(is_terminal: bool) -> Stream:
        made = Stream(is_terminal)
        monkeypatch.setattr(sys, "stderr", made)
        return made

    return make


def test_without_a_terminal_lines_come_even_if_nothing_is_done(
    stream: Callable[[bool], Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.01)
    err = stream(False)
    with progress.progress("drawing", 40, "image", initial=30) as bar:
        err.wait()
        bar.update(5)
        bar.set_postfix(loss="0.5")
        err.wait()
        err.wait()  # The line before may have been under way.
    lines = err.getvalue().splitlines()
    assert lines[0].startswith("drawing: 30/40 in 00:00")
    assert lines[-1].startswith("drawing: 35/40 in 00:00")
    assert "loss=0.5" in lines[-1]
    assert "\r" not in err.getvalue()


def test_what_is_soon_done_prints_no_line(stream: Callable[[bool], Stream]) -> None:
    err = stream(False)
    assert list(progress.tracked([3, 1, 2], "checking", "image")) == [3, 1, 2]
    assert err.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_to_its_end(stream: Callable[[bool], Stream]) -> None:
    err = stream(True)
    assert list(progress.tracked([3, 1, 2], "checking", "image")) == [3, 1, 2]
    assert "checking: 100%" in err.getvalue()
    assert "3/3" in err.getvalue()


def test_waiting_is_said_at_once_and_again(
    stream: Callable[[bool], Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    err = stream(False)
    with progress.waiting("Starting Ray"):
        assert err.getvalue() == "Starting Ray\n"
    monkeypatch.setattr(progress, "LINE_S", 0.01)
    with progress.waiting("Starting Ray"):
        err.wait()
    assert "Starting Ray: 0 s so far\n" in err.getvalue()
