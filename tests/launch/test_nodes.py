"""A cluster that loses a node: without notice, and one that is taken away with notice."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import s3fs
from ray.cluster_utils import Cluster

from tests.launch import commands
from tests.launch.runs import options
from tests.train import object_store

pytestmark = [
    pytest.mark.slow,
    # Ray's cluster utility leaves a socket open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STEPS, EVERY = 40, 4
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.fixture
def cluster(monkeypatch) -> Iterator[Cluster]:
    """Two nodes with a CPU each."""
    # How often Ray Train looks whether a node will be taken away.
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    head = {**NODE, "dashboard_port": object_store.free_port()}
    made = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    made.add_node(**NODE)
    yield made
    made.shutdown()


@pytest.fixture
def stored(shards: Path) -> Iterator[str]:
    """A bucket with the shards in it: nodes share nothing else."""
    for bucket in object_store.serve():
        s3fs.S3FileSystem().put(str(shards), "bucket/shards", recursive=True)
        yield bucket


def losses_of(database: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(tracking_uri=database)
    (run,) = client.search_runs(["1"])
    return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")]


def wait_until(
    process: "subprocess.Popen[str]", is_so: Callable[[], object], limit_s: float = 240
) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_node_lost_without_notice(
    cluster, stored, tmp_path, built_in_data, monkeypatch
) -> None:
    monkeypatch.setenv("ACONTROL_CACHE", str(tmp_path / "cache"))
    databases = [f"sqlite:///{tmp_path / name}.db" for name in ("calm", "wild")]
    calm, wild = (
        [
            *options(Path("unused"), Path(name), steps=STEPS, every=EVERY),
            *("--data.shards", f"{stored}/shards", "--output", f"{stored}/{name}"),
            *("--tracking.uri", database, "--cluster.max-failures", 1),
            *("--cluster.placement", "STRICT_SPREAD"),
        ]
        for name, database in zip(("calm", "wild"), databases, strict=True)
    )
    undisturbed = commands.run("launch.train", *calm)
    assert undisturbed.returncode == 0, undisturbed.stderr
    bucket = s3fs.S3FileSystem(use_listings_cache=False)

    def checkpoints() -> list[str]:
        return bucket.glob("bucket/wild/launches/*/bundle-*/manifest.json")

    process = commands.start("launch.train", *wild)
    wait_until(process, checkpoints)
    cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
    cluster.add_node(**NODE)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert re.search(r"step \d+ \(.*bundle-\d+\): \d+ steps? (?:is|are) repeated", out)
    assert losses_of(databases[1]) == losses_of(databases[0])
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    for name in names:
        ours, theirs = (bucket.cat(f"bucket/{run}/adapter/{name}") for run in ("wild", "calm"))
        assert ours == theirs, name
    drawn = commands.run(
        "launch.generate",
        *("--model", f"{stored}/wild", "--data", built_in_data, "--out", tmp_path / "drawn"),
        *("--count", 1, "--steps", 2, "--category", "wood", "--defect", "crack"),
        *("--gate", "keep"),
    )
    assert drawn.returncode == 0, drawn.stderr
    assert list((tmp_path / "drawn").rglob("ground_truth/crack/*.png"))


def test_a_node_taken_away_with_notice(cluster, shards, tmp_path) -> None:
    output = tmp_path / "run"
    args = options(shards, output, steps=150, every=1000)
    process = commands.start(
        "launch.train", *args, "--cluster.placement", "STRICT_SPREAD", "--cluster.hang-s", 30
    )
    wait_until(process, lambda: steps_of(output) > 5)
    leaving = cluster.list_all_nodes()[1]
    drain = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    told = subprocess.run(
        [
            *drain,
            *("--address", cluster.address, "--node-id", leaving.node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
            *("--deadline-remaining-seconds", "60"),
        ],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    wait_until(process, lambda: list(output.glob("launches/*/bundle-*/manifest.json")))
    (checkpoint,) = output.glob("launches/*/bundle-*")
    cluster.remove_node(leaving, allow_graceful=False)
    cluster.add_node(**NODE)
    out, err = process.communicate(timeout=400)
    # No failure is allowed: a node that leaves with notice is none.
    assert process.returncode == 0, err
    step = int(checkpoint.name.removeprefix("bundle-"))
    assert 0 < step < 150
    assert f"step {step}: a node is about to be preempted; writing a checkpoint" in out
    assert re.search(
        rf"step {step} \(.*{checkpoint.name}\): \d+ steps? (?:is|are) repeated", out
    )


def steps_of(output: Path) -> int:
    """Steps that were logged, by the queue: MLflow's database may still be in the making."""
    files = output.glob("events/*/*.jsonl")
    return sum(file.read_text().count('"asea_energy_after"') for file in files)
