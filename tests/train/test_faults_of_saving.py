"""Killed, or out of room, anywhere in a save: the last good checkpoint always loads."""

import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from acontrol.errors import UserError
from acontrol.method.sga import SemanticAdapter
from acontrol.train.checkpoint import export_adapter, newest_checkpoint, prune
from tests.train.checkpoints import checkpoint_at, files_of, small_adapter

# Calls that change the disk, besides opening and writing; and those that need space.
CHANGING = ("fsync", "replace", "mkdir", "rmdir", "unlink")
FILLING = ("fsync", "replace")
EVERY = 5  # Steps between the checkpoints that are written here.


def save(run: Path, card: dict[str, object], step: int) -> None:
    """All that a checkpoint does to the disk."""
    path = checkpoint_at(small_adapter(card, step), run, step)
    export_adapter(path, run / "adapter")
    prune(run, keep=2, newest=path)


def check_run(run: Path, at_least: int) -> None:
    """Checkpoint and exported adapter load, and are what was saved then."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    assert checkpoint.state.step >= at_least
    state = checkpoint.adapter_state()
    expected = small_adapter({}, checkpoint.state.step).proj.weight
    assert torch.equal(state.weights["proj.weight"], expected)
    assert torch.equal(state.moments["exp_avg.proj.weight"], expected * checkpoint.state.step)
    exported = SemanticAdapter.from_pretrained(run / "adapter").proj.weight
    step = round(exported[0, 0].item() / 1000)
    assert step % EVERY == 0
    assert torch.equal(exported, small_adapter({}, step).proj.weight)


@contextlib.contextmanager
def at_call(
    number: int, act: Callable[[], None], names: tuple[str, ...] = CHANGING
) -> Iterator[SimpleNamespace]:
    """Act before the ``number``-th call, from 0, of those that change the disk.

    Calls of this thread alone: earlier tests may have left others that write.
    """
    seen, here = SimpleNamespace(calls=0), threading.get_ident()

    def counted(whole: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            if threading.get_ident() != here:
                return whole(*args, **more)
            seen.calls += 1
            if seen.calls - 1 == number:
                act()
            return whole(*args, **more)

        return call

    def opened(path: Path, mode: str = "r", *args: object, **more: object) -> object:
        stream = real_open(path, mode, *args, **more)
        if mode == "wb":
            return Writing(stream)
        return stream

    class Writing:
        """A file whose writing counts, and is half done when something happens."""

        def __init__(self, stream):
            self.stream = stream
            self.flush, self.fileno = stream.flush, stream.fileno

        def write(self, content: bytes) -> None:
            self.stream.write(content[: len(content) // 2])
            self.stream.flush()
            counted(self.stream.write)(content[len(content) // 2 :])

        def __enter__(self) -> "Writing":
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

    real_open = Path.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", counted(opened))
        for name in names:
            patch.setattr(os, name, counted(getattr(os, name)))
        yield seen


def calls_of_a_save(run: Path, card: dict[str, object]) -> int:
    save(run, card, 5)
    save(run, card, 10)
    with at_call(-1, lambda: None) as seen:
        save(run, card, 15)
    return seen.calls


def save_and_die(run: Path, card: dict[str, object], number: int) -> None:
    with at_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        save(run, card, 15)


def save_for_ever(run: Path, card: dict[str, object], saved: Path) -> None:
    for step in range(EVERY, 10_000, EVERY):
        save(run, card, step)
        saved.write_text(f"{step} ")  # The step is acknowledged.


@pytest.fixture(scope="module")
def forks() -> multiprocessing.context.ForkServerContext:
    """Processes that begin with everything imported, and are killed in earnest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_call_of_a_save(forks, card, tmp_path, stride) -> None:
    described = card().model_dump(mode="json")
    before = tmp_path / "before"
    calls = calls_of_a_save(tmp_path / "count", described)
    assert calls > 30
    for step in (5, 10):
        save(before, described, step)
    reached = set()
    for number in range(0, calls, stride):
        run = tmp_path / f"run-{number}"
        shutil.copytree(before, run)
        child = forks.Process(target=save_and_die, args=(run, described, number))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        check_run(run, at_least=10)
        checkpoint = newest_checkpoint(run)
        reached.add(checkpoint.state.step if checkpoint else None)
        save(run, described, 15)  # What the kill left is in nobody's way.
        check_run(run, at_least=15)
    assert reached == {10, 15}


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(forks, card, tmp_path, kills) -> None:
    described = card().model_dump(mode="json")
    moments = random.Random(0)
    run = tmp_path / "run"
    saved = tmp_path / "saved"
    for _ in range(kills):
        shutil.rmtree(run, ignore_errors=True)
        saved.unlink(missing_ok=True)
        child = forks.Process(target=save_for_ever, args=(run, described, saved))
        child.start()
        while not saved.exists() or not saved.read_text():
            assert child.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.2))
        child.kill()
        child.join()
        text = saved.read_text()
        check_run(run, at_least=int(text) if text else EVERY)


def no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_during_a_save(card, tmp_path) -> None:
    described = card().model_dump(mode="json")
    calls = calls_of_a_save(tmp_path / "count", described)
    run = tmp_path / "run"
    for step in (5, 10):
        save(run, described, step)
    before = files_of(run)
    refused = 0
    for number in range(calls):
        with at_call(number, no_room, FILLING) as seen:
            try:
                checkpoint_at(small_adapter(described, 15), run, 15)
            except UserError as error:
                assert "no room for" in str(error)
                refused += 1
        if seen.calls <= number:
            break  # Beyond the checkpoint's own calls.
        assert files_of(run) == before, "nothing half-written is left"
        check_run(run, at_least=10)
    assert refused == number
    assert refused >= 10


def test_a_full_disk_is_seen_before_anything_is_written(card, tmp_path, monkeypatch) -> None:
    described = card().model_dump(mode="json")
    run = tmp_path / "run"
    save(run, described, 5)
    before = files_of(run)
    usage = SimpleNamespace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"run/launches/a: no room .*1 MiB are free; make room"):
        checkpoint_at(small_adapter(described, 10), run, 10)
    assert files_of(run) == before
    usage.free = 2**30
    save(run, described, 10)
    check_run(run, at_least=10)
