"""What a user sees while a cluster is joined."""

import os
from pathlib import Path

import pytest
import ray
from ray._private import services

from acontrol.config import ClusterConfig
from acontrol.runs import cluster
from acontrol.runs.cluster import joined_cluster


def test_joining_a_cluster_is_said_before_it_takes_its_time(
    ray_address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    with joined_cluster(ClusterConfig(), show_output=False):
        printed = capsys.readouterr().err
    assert printed.splitlines()[0] == f"Joining the Ray cluster at {ray_address}"


@pytest.mark.slow
def test_a_local_clusters_processes_know_it_from_another_on_their_machine(
    ray_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "CURRENT_CLUSTER", tmp_path / "none")
    found = ray.remote(lambda: services.canonicalize_bootstrap_address_or_die(None))
    with joined_cluster(ClusterConfig(), show_output=False):
        own = ray.get_runtime_context().gcs_address
        assert own != ray_address
        assert ray.get(found.remote()) == own
    assert "RAY_GCS_SERVER_PORT" not in os.environ


@pytest.mark.parametrize(("on_gpus", "accelerator"), [(True, "cuda"), (False, "cpu")])
def test_workers_do_not_inherit_the_drivers_accelerator(
    on_gpus: bool, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert cluster.worker_environment(on_gpus)["DS_ACCELERATOR"] == accelerator
