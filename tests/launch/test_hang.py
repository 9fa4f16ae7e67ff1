"""Workers that hang or are halted are found, said to hang where they do, and replaced."""

import re
from pathlib import Path

import pytest

from benchmarks.disturbed import Fault
from benchmarks.trial import bytes_wrong, carry_out, config_of, losses_in_mlflow

pytestmark = pytest.mark.slow


def test_a_hung_and_a_halted_worker_are_replaced(shards: Path, tmp_path: Path) -> None:
    shape = {"stage": 1, "steps": 10, "every": 3}
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    undisturbed = carry_out(calm, config_of(calm / "run", shards, **shape))
    assert undisturbed.statuses == [0], undisturbed.errors
    faults = (Fault(kind="hang", rank=1, step=4), Fault(kind="stall", rank=0, step=8))
    disturbed = carry_out(wild, config_of(wild / "run", shards, **shape), faults)
    assert disturbed.statuses == [0], disturbed.errors
    assert sorted(name for _, name in disturbed.happened) == ["hang", "stall"]
    said = (wild / "log-0.txt").read_text()
    assert "Timeout (0:00:15)!" in said
    assert "in _do" in said, "the line where it hung"
    assert len(re.findall(r"steps? (?:is|are) repeated", said)) == 2
    assert bytes_wrong(disturbed.run, undisturbed.run) == 0
    assert losses_in_mlflow(disturbed.run) == losses_in_mlflow(undisturbed.run)
