"""Real training whose MLflow server is killed in the middle."""

import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from acontrol.runs.record import RunRecord
from benchmarks.mlflow_proxy import Server
from tests.launch import commands
from tests.launch.runs import STEPS, losses_of, options

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    server = Server(tmp_path).start()
    yield server
    server.kill()


def until_there(output: Path, pattern: str) -> None:
    deadline = time.monotonic() + 240
    while not list(output.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def holds_what_an_undisturbed_run_does(server: Server, output: Path, whole: Path) -> None:
    record = RunRecord.read(output)
    assert record is not None
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    history = client.get_metric_history(record.mlflow_run, "loss")
    # Bit for bit, each step once.
    found = sorted((one.step, one.value) for one in history)
    assert found == losses_of(whole)
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    run = client.get_run(record.mlflow_run)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert run.info.status == "FINISHED"
    pictures = [one.path for one in client.list_artifacts(record.mlflow_run, "images")]
    assert len([one for one in pictures if one.endswith(".png")]) == 1


def test_a_server_gone_in_the_middle_and_back_later_has_everything(
    server, shards, whole, tmp_path
) -> None:
    output = tmp_path / "run"
    process = commands.start(
        "launch.train", *options(shards, output), "--tracking.uri", server.uri
    )
    until_there(output, "launches/*/bundle-00000003/manifest.json")
    server.kill()
    # Trained on, with nobody there.
    until_there(output, f"launches/*/bundle-{STEPS:08}/manifest.json")
    server.start()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "events wait" not in out
    holds_what_an_undisturbed_run_does(server, output, whole)


def test_what_a_run_could_not_send_the_same_command_sends(
    server, shards, whole, tmp_path
) -> None:
    output = tmp_path / "run"
    command = (*options(shards, output), "--tracking.uri", server.uri)
    process = commands.start("launch.train", *command, "--tracking.wait-s", 1)
    until_there(output, "launches/*/bundle-00000003/manifest.json")
    server.kill()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    (line,) = [line for line in out.splitlines() if "events wait" in line]
    assert str(output / "events") in line
    assert out.splitlines()[-1] == f"Adapter: {output / 'adapter'}"
    server.start()
    again = commands.run("launch.train", *command)
    assert again.returncode == 0, again.stderr
    assert "Nothing to do" in again.stdout
    holds_what_an_undisturbed_run_does(server, output, whole)
