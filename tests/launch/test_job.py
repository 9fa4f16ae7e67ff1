"""`ray job submit` on a cluster with token authentication, and a real MLflow server."""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from launch import generate, shard
from tests.launch.commands import ROOT

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Cluster:
    """A head node that `ray start` made, and how to talk to it."""

    def __init__(self, scratch: Path, stop_wait: str | None):
        token = scratch / "token"
        token.write_text(secrets.token_hex(32))
        self.dashboard, self.port = free_port(), free_port()
        others = {name: os.environ[name] for name in os.environ if name != "RAY_AUTH_TOKEN"}
        self.environment = {
            **others,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
        }
        if stop_wait is not None:
            self.environment["RAY_JOB_STOP_WAIT_TIME_S"] = stop_wait

    def __enter__(self) -> "Cluster":
        start = {**self.environment}
        del start["RAY_ADDRESS"]
        # A folder of its own, also for the note by which other launches on this machine would
        # find it. Short, since sockets go there.
        self.folder = tempfile.mkdtemp(prefix="ray-")
        ports = ["--port", str(self.port), f"--dashboard-port={self.dashboard}"]
        place = f"--temp-dir={self.folder}"
        command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", place, *ports]
        # Blocking, so that ending it ends this cluster and no other on the machine.
        self.process = subprocess.Popen(
            [*command, "--include-dashboard=true", "--object-store-memory=200000000"],
            env=start,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(240):
            if self.job("list").returncode == 0:
                return self
            time.sleep(0.5)
        raise AssertionError("the cluster does not answer")

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def job(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [BIN / "ray", "job", *args],
            env=self.environment,
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=400,
        )

    def submit(self, *args: object, wait: bool = True) -> "subprocess.CompletedProcess[str]":
        more = [] if wait else ["--no-wait"]
        module = [str(BIN / "python"), "-m", "launch.train", *(str(arg) for arg in args)]
        return self.job("submit", *more, "--working-dir", ".", "--", *module)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    scratch = tmp_path_factory.mktemp("server")
    uri = f"http://127.0.0.1:{(port := free_port())}"
    store = ["--backend-store-uri", f"sqlite:///{scratch / 'server.db'}"]
    place = ["--artifacts-destination", str(scratch / "artifacts")]
    command = [BIN / "mlflow", "server", "--port", str(port), "--workers", "1", *store, *place]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{uri}/health", timeout=2).status == 200:
                    break
            time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@pytest.fixture(scope="module")
def shards(built_in_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("job") / "shards"
    shard.run([str(built_in_data), "--out", str(out), "--split", "all"])
    return out


def options(shards: Path, output: Path, uri: str, steps: int, every: int = 2) -> list[object]:
    return [
        *("tiny", "--data.shards", shards, "--output", output, "--tracking.uri", uri),
        *("--optim.steps", steps, "--optim.batch-size", 4, "--samples.steps", 2),
        *("--checkpoint.every", every, "--samples.every", 0),
    ]


def wait_for_steps(uri: str, name: str, at_least: int) -> None:
    client = mlflow.MlflowClient(tracking_uri=uri)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for run in client.search_runs(["1"], f"attributes.run_name = '{name}'"):
            if len(client.get_metric_history(run.info.run_id, "loss")) >= at_least:
                return
        time.sleep(0.5)
    raise AssertionError(f"{name} did not reach step {at_least}")


def checkpoints(output: Path) -> list[int]:
    found = output.glob("launches/*/bundle-*/manifest.json")
    return sorted(int(path.parent.name.split("-")[1]) for path in found)


def test_a_job_trains_and_a_stopped_one_continues(
    shards, built_in_data, server, tmp_path
) -> None:
    with Cluster(tmp_path, stop_wait="60") as cluster:
        refused = cluster.submit("tiny", "--data.shards", "shards", "--output", "/tmp/x")
        assert "--data.shards shards: a Ray job runs in a temporary copy" in refused.stdout
        assert refused.returncode != 0

        done = cluster.submit(*options(shards, tmp_path / "whole", server, 6))
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"Adapter: {tmp_path / 'whole' / 'adapter'}" in done.stdout
        args = ["--model", tmp_path / "whole", "--data", built_in_data, "--steps", 2]
        args += ["--gate", "keep"]
        generate.run([str(arg) for arg in [*args, "--count", 1, "--out", tmp_path / "drawn"]])
        assert (tmp_path / "drawn" / "manifest.jsonl").is_file()
        wait_for_steps(server, "whole", 6)

        output = tmp_path / "stopped"
        long = options(shards, output, server, 3000, every=1500)
        submitted = cluster.submit(*long, wait=False)
        (job,) = set(re.findall(r"raysubmit_\w+", submitted.stdout))
        # Metrics are sent with a checkpoint or in stretches: some have arrived when one has.
        wait_for_steps(server, "stopped", 1)
        cluster.job("stop", job)
        (step,) = checkpoints(output)
        assert 0 < step < 1500, "the checkpoint was written on SIGTERM"
        logs = cluster.job("logs", job).stdout
        assert "Stopping after this step, with a checkpoint" in logs
        again = cluster.submit(*options(shards, output, server, step + 2))
        assert f"Continuing from step {step}" in again.stdout
        assert again.returncode == 0


def test_with_the_default_wait_the_last_periodic_checkpoint_remains(
    shards, server, tmp_path
) -> None:
    with Cluster(tmp_path, stop_wait=None) as cluster:
        output = tmp_path / "killed"
        submitted = cluster.submit(*options(shards, output, server, 3000), wait=False)
        (job,) = set(re.findall(r"raysubmit_\w+", submitted.stdout))
        deadline = time.monotonic() + 240
        while not checkpoints(output):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        cluster.job("stop", job)
        remains = checkpoints(output)[-1]
        again = cluster.submit(*options(shards, output, server, remains + 2))
        assert f"Continuing from step {remains}" in again.stdout
        assert again.returncode == 0


FROM_ANOTHER_NODE = """
import shutil
import ray
from acontrol.config import ClusterConfig
from acontrol.runs.cluster import joined_cluster

@ray.remote
def place():
    import acontrol
    return acontrol.__file__

with joined_cluster(ClusterConfig()):
    shutil.rmtree("acontrol")  # Another node does not have the driver's folder.
    print(ray.get(place.remote()))
"""


def test_a_launch_on_a_found_cluster_brings_its_own_code(shards, tmp_path) -> None:
    shutil.copytree(ROOT / "acontrol", tmp_path / "code" / "acontrol")
    with Cluster(tmp_path, stop_wait=None) as cluster:

        def run(cwd: Path, *command: object) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [BIN / "python", *(str(part) for part in command)],
                env=cluster.environment | {"RAY_ADDRESS": f"127.0.0.1:{cluster.port}"},
                cwd=cwd,
                capture_output=True,
                text=True,
            )

        asked = run(tmp_path / "code", "-c", FROM_ANOTHER_NODE)
        database = f"sqlite:///{tmp_path / 'mlflow.db'}"
        args = options(shards, tmp_path / "run", database, 2)
        trained = run(ROOT, "-m", "launch.train", *args)
    assert asked.returncode == 0, asked.stderr
    assert "/py_modules_files/" in asked.stdout.splitlines()[-1]
    assert trained.returncode == 0, trained.stderr
    assert checkpoints(tmp_path / "run") == [2]


def test_a_command_without_the_token_says_what_it_needs(tmp_path) -> None:
    with Cluster(tmp_path, stop_wait=None) as cluster:
        others = {
            name: value
            for name, value in cluster.environment.items()
            if not name.startswith("RAY_AUTH")
        }
        address = f"127.0.0.1:{cluster.port}"
        code = "from acontrol.config import ClusterConfig\n"
        code += "from acontrol.runs.cluster import joined_cluster\n"
        code += "with joined_cluster(ClusterConfig()): pass"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=others | {"RAY_ADDRESS": address},
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=200,
        )
    assert done.returncode != 0
    said = done.stderr.splitlines()[-1]
    assert f"UserError: the Ray cluster at {address} does not let this in" in said
    assert "RAY_AUTH_MODE=token" in said
