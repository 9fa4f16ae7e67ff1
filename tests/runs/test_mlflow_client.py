"""What a user is told about MLflow."""

import shlex
from pathlib import Path

import mlflow
import pytest

from acontrol.runs.mlflow_client import nearest_model, where_to_look
from acontrol.runs.server import TrackingStore, own_database
from acontrol.runs.tracking import Tracker


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return own_database(tmp_path_factory.mktemp("mlflow"))


def test_a_link_opens_the_experiment() -> None:
    page = "#/experiments/7?workflowType=machine_learning"
    assert where_to_look("http://me:secret@host:5000/", "7") == f"http://host:5000/{page}"
    assert where_to_look("http://host:5000", None) == "http://host:5000"
    shown = where_to_look("sqlite:////my runs/mlflow.db", "7")
    command, _, address = shown.partition("  and open ")
    assert shlex.split(command)[-2:] == ["--backend-store-uri", "sqlite:////my runs/mlflow.db"]
    assert address == f"http://127.0.0.1:5000/{page}"


def test_it_is_printed_at_the_start_and_the_end_of_a_run_and_when_it_continues(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Tracker.open(TrackingStore(uri), "tiles", "run", None, tmp_path)
    experiment = first.client.get_run(first.run_id).info.experiment_id
    line = f"MLflow:  {where_to_look(uri, experiment)}"
    assert capsys.readouterr().out.splitlines() == [line]
    first.finish("FINISHED")
    assert capsys.readouterr().out.splitlines()[-1] == line
    again = Tracker.open(TrackingStore(uri), "tiles", "run", first.run_id, tmp_path)
    assert capsys.readouterr().out.splitlines() == [line]
    again.finish("FINISHED", show_page=False)  # As when there was nothing to do.
    assert capsys.readouterr().out == ""


def test_a_model_that_is_missing_has_neighbours(uri: str) -> None:
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert nearest_model(client, "tiles", None) == "there are none"
    client.create_registered_model("tiles")
    run = client.create_run(client.create_experiment("registered"))
    client.create_model_version("tiles", "/models/1", run.info.run_id)
    client.set_registered_model_alias("tiles", "champion", "1")
    assert nearest_model(client, "tile", None) == "did you mean tiles? (choose from tiles)"
    expected = "alias champoin: did you mean champion? (choose from champion)"
    assert nearest_model(client, "tiles", "champoin") == expected
    assert nearest_model(client, "tiles", None) == "versions: 1"
