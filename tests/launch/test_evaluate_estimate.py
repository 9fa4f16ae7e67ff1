"""launch.evaluate: trainings of more than an hour are asked about, on a terminal."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acontrol.errors import UserError
from acontrol.evaluation.results import TrainingJob
from acontrol.evaluation.trainings import ASKS_FROM_S, announce
from launch import evaluate, shard
from tests.launch.test_errors import error_of

JOBS = [TrainingJob("wood", "real", seed) for seed in range(4)]
LONG = ASKS_FROM_S / 4 + 1  # Seconds of each.
QUESTION = "Start? [y/N] "
REFUSAL = "nothing was trained: answer y or give --yes"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], int]]:
    """Standard input is a terminal; the call types into it."""
    outer, inner = os.openpty()
    with os.fdopen(inner) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda typed: os.write(outer, typed)
    os.close(outer)


@pytest.mark.parametrize("answer", ["\n", "n\n", "what\n", "\x04"])
def test_a_long_one_starts_with_a_yes_alone(
    answer: str, terminal, tmp_path: Path, capsys
) -> None:
    terminal(answer.encode())
    with pytest.raises(UserError, match=REFUSAL):
        announce(JOBS, tmp_path, lambda: LONG)
    said = capsys.readouterr().out
    assert "About 15.0 min per training on this machine, 60.1 min for all 4, one after" in said
    assert said.endswith(QUESTION)


def test_a_yes_starts_it(terminal, tmp_path: Path, capsys) -> None:
    terminal(b"y\n")
    announce(JOBS, tmp_path, lambda: LONG)
    assert capsys.readouterr().out.endswith(QUESTION)


def test_others_are_not_asked(terminal, tmp_path: Path, capsys) -> None:
    terminal(b"n\n")  # A question would be refused.
    announce(JOBS, tmp_path, lambda: LONG, yes=True)
    announce(JOBS, None, lambda: LONG)
    announce(JOBS, tmp_path, lambda: ASKS_FROM_S / 4)
    file = JOBS[0].file(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    announce(JOBS, tmp_path, lambda: LONG)  # Three are left.
    said = capsys.readouterr().out
    assert said.count("About ") == 4
    assert "45.0 min for all 3" in said
    assert QUESTION not in said
    for job in JOBS:
        job.file(tmp_path).write_text("{}")
    announce(JOBS, tmp_path, lambda: pytest.fail("nothing is left to estimate"))


def test_a_job_is_not_asked(monkeypatch, tmp_path: Path, capsys) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        announce(JOBS, tmp_path, lambda: LONG)
    said = capsys.readouterr().out
    assert "60.1 min for all 4" in said
    assert QUESTION not in said


@pytest.mark.parametrize("command", ["localization", "classification", "ablation"])
def test_commands_ask(command: str, terminal, wood: Path, tmp_path: Path, capsys) -> None:
    # Enough seeds for more than an hour anywhere.
    args = ["--real", wood, "--out", tmp_path / "out", "--budget", "small", "--seeds", 1000]
    if command == "ablation":
        shard.run([str(wood), "--out", str(tmp_path / "shards")])
        args = ["tiny", "--data.shards", tmp_path / "shards", "--rows", "sga", *args]
    else:
        args += ["--sources", "real"]
    terminal(b"n\n")
    assert REFUSAL in error_of(evaluate.run, command, *args)
    said = capsys.readouterr().out
    assert said.endswith(QUESTION)
    assert ("(detectors alone: adapters and images come first)" in said) == (
        command == "ablation"
    )
    assert not (tmp_path / "out").exists()
