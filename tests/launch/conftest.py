import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from acontrol.config import ClusterConfig
from acontrol.data.builtin import write_dataset
from acontrol.runs.cluster import joined_cluster
from acontrol.runs.server import own_database
from launch import shard
from tests.launch import commands
from tests.launch.runs import TRACED, losses_both_ways, options, precompute_options
from tests.train.ranks import run_ranks


@pytest.fixture(scope="session")
def shards(built_in_data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("job") / "shards"
    shard.run([str(built_in_data), "--out", str(out), "--split", "all", "--shard-size", "5"])
    return out


@pytest.fixture(scope="session")
def whole(shards, ray_address, tmp_path_factory) -> Path:
    """A run that nothing disturbed, and that is watched in every way."""
    output = tmp_path_factory.mktemp("job") / "whole"
    watched = ("--profile", TRACED, "--tracking.system-metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
        done = commands.run(
            *("launch.train", *options(shards, output), *watched), cluster=ray_address
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Adapter: {output / 'adapter'}"
    return output


@pytest.fixture(scope="session")
def features(shards: Path, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What launch.precompute wrote."""
    out = tmp_path_factory.mktemp("precompute") / "features"
    args = precompute_options(shards, out)
    done = commands.run("launch.precompute", *args, cluster=ray_address)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert f"Features: {path}\n" in done.stdout
    return out


@pytest.fixture(scope="session")
def in_one_process(
    whole: Path, features: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[float]]:
    """The losses of ``whole`` without Ray and with one rank, online and from features."""
    config = json.loads((whole / "config.json").read_text())
    config["cluster"]["num_workers"] = 1
    scratch = tmp_path_factory.mktemp("ranks")
    return run_ranks(losses_both_ways, 1, scratch, json.dumps(config), str(features))


@pytest.fixture(scope="session")
def wood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One product with two defects, five of each."""
    root = tmp_path_factory.mktemp("evaluate") / "real"
    write_dataset(
        root,
        num_good=4,
        num_good_test=3,
        num_defects=5,
        categories=("wood",),
        defects=("crack", "stain"),
    )
    return root


@pytest.fixture(scope="session")
def other_wood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a generator would write it: other images of the same kinds, without good ones."""
    root = tmp_path_factory.mktemp("evaluate") / "other"
    write_dataset(
        root,
        num_good=1,
        num_good_test=1,
        num_defects=3,
        categories=("wood",),
        defects=("crack", "stain"),
        seed=3,
    )
    return root


@pytest.fixture(scope="module")
def cluster(ray_address: str) -> Iterator[None]:
    """This process joins the cluster, as a user's would be there already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_address)
        with joined_cluster(ClusterConfig(), show_output=False):
            yield


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, empty: making them takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(own_database(folder), (folder / "artifacts").as_uri())
    return folder / "mlflow.db"
