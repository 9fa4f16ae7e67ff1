"""What a user sees while a cluster is joined."""

import pytest

from acontrol.config import ClusterConfig
from acontrol.runs.cluster import joined_cluster


def test_joining_a_cluster_is_said_before_it_takes_its_time(
    ray_address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    with joined_cluster(ClusterConfig(), show_output=False):
        printed = capsys.readouterr().err
    assert printed.splitlines()[0] == f"Joining the Ray cluster at {ray_address}"
