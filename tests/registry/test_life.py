"""Register, promote, pull, generate: against a real MLflow server."""

import getpass
import io
import json
import re
import shlex
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from PIL import Image

from acontrol.config import TrackingConfig
from acontrol.errors import UserError
from acontrol.evaluation.caveats import of_budget
from acontrol.evaluation.report import Report, Table
from acontrol.registry.promote import _differences, promote
from acontrol.registry.pull import pull
from acontrol.registry.register import register_run
from acontrol.runs.inputs import DataInput
from acontrol.runs.results import log, results_in
from launch import generate, register, train
from launch import promote as promote_command
from launch import pull as pull_command
from tests.launch.test_errors import error_of


def drawn(model: object, data: Path, out: Path) -> dict[str, bytes]:
    """Everything that launch.generate writes."""
    generate.run(
        [
            *("--model", str(model), "--data", str(data), "--out", str(out), "--steps", "3"),
            *("--category", "wood", "--defect", "crack", "--count", "2", "--gate", "keep"),
        ]
    )
    return {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file()
    }


def test_from_a_run_to_a_pulled_champion_every_byte_is_kept(
    server: str,
    finished_run: Callable[..., Path],
    built_in_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = finished_run(uri=server)
    register.run([str(run), "life", "--licence", "Data: ours alone."])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "Registered: models:/life/1 (alias candidate)"
    promote_command.run(["life", "--tracking.uri", server])
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "life version 1: no champion so far, nothing to compare with",
        "Champion: models:/life@champion",
    ]
    out = tmp_path / "pulled"
    pull_command.run(["models:/life@champion", "--out", str(out), "--tracking.uri", server])
    assert capsys.readouterr().out.splitlines()[-1] == f"Adapter: {out}"
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (out / name).read_bytes() == (run / "adapter" / name).read_bytes()
    page = (out / "README.md").read_text()
    for words in (
        *("Data: ours alone.", "Apache-2.0", "1" * 64, "validation_loss | 0.1 |"),
        *("| wood | crack 3, stain 2 |", "## Limits", "trained on 5 images of defects"),
        f"Trained by {getpass.getuser()} on {datetime.now(UTC).date()} with acontrol",
        "](samples.png)",
    ):
        assert words in page
    # The last step's grid, not another one.
    assert Image.open(io.BytesIO((out / "samples.png").read_bytes())).getpixel((0, 0)) == (
        10,
        0,
        0,
    )
    expected = drawn(run, built_in_data, tmp_path / "of-run")
    assert drawn(out, built_in_data, tmp_path / "of-pulled") == expected
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    by_name = drawn("models:/life@champion", built_in_data, tmp_path / "of-name")
    assert by_name == expected
    assert sum(name.endswith(".png") for name in expected) == 4 + 1, "and a contact sheet"
    # And training takes it to start from: the complaint is about the data, not about it.
    words = error_of(
        train.run,
        "tiny",
        "--init",
        out,
        "--data.shards",
        "/nowhere",
        "--output",
        tmp_path / "r",
    )
    assert "/nowhere" in words


def test_a_registered_model_is_data(server: str, finished_run: Callable[..., Path]) -> None:
    register_run(finished_run(uri=server), "data")
    client = mlflow.MlflowClient(server, server)
    version = client.get_model_version_by_alias("data", "candidate")
    place = version.source.rsplit("/", 1)[1]
    names = [
        file.path.removeprefix(f"{place}/")
        for folder in (place, f"{place}/adapter")
        for file in client.list_artifacts(version.run_id, folder)
    ]
    assert sorted(names) == [
        "MLmodel",
        "README.md",
        "adapter",
        "adapter/config.json",
        "adapter/diffusion_pytorch_model.safetensors",
        "card.json",
        "input_example.json",
        "manifest.json",
        "samples.png",
        "serving_input_example.json",
    ]
    assert version.tags["data_digest"] == "1" * 64
    words = {"categories": "wood", "defects": "crack, stain", "training images": "5"}
    assert words.items() <= version.tags.items()
    # The picture is where a browser at the server finds it.
    (link,) = re.findall(r"\((/get-artifact[^)]*)\)", version.description)
    with urllib.request.urlopen(server + link, timeout=60) as answer:
        assert Image.open(io.BytesIO(answer.read())).getpixel((0, 0)) == (10, 0, 0)


def test_the_same_weights_are_registered_once(
    server: str, finished_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(uri=server)
    register.run([str(run), "once"])
    register.run([str(run), "once"])
    printed = capsys.readouterr().out.splitlines()
    assert "These weights are version 1 already" in printed
    assert printed[-1] == "Registered: models:/once/1 (alias candidate)"


def test_a_run_of_another_server_is_copied(server: str, own_run: Path, tmp_path: Path) -> None:
    register_run(own_run, "copied", server)
    client = mlflow.MlflowClient(server, server)
    version = client.get_model_version_by_alias("copied", "candidate")
    copy = client.get_run(version.run_id)
    assert copy.data.metrics == {"validation_loss": 0.1}
    assert copy.data.params["optim.steps"] == "10"
    original = mlflow.MlflowClient(f"sqlite:///{own_run.parent}/mlflow.db").get_run(
        json.loads((own_run / "run.json").read_text())["mlflow_run"]
    )
    assert copy.data.tags["mlflow.user"] == original.data.tags["mlflow.user"]
    assert copy.inputs.to_dictionary() == original.inputs.to_dictionary()
    assert pull("models:/copied/1", tmp_path / "out", server).metrics == copy.data.metrics


def test_a_run_registers_where_it_is(own_run: Path, tmp_path: Path) -> None:
    done = register_run(own_run, "own")
    assert done.uri == f"sqlite:///{own_run.parent}/mlflow.db"
    assert pull("models:/own@candidate", tmp_path / "out", done.uri).name == "own"


def test_the_next_command_works_as_printed(
    own_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)

    def printed_promotion() -> list[str]:
        register.run([str(own_run), "printed"])
        lines = capsys.readouterr().out.splitlines()
        (line,) = [line for line in lines if line.startswith("Make it the champion:")]
        assert "acontrol promote" in line
        return shlex.split(line.partition("acontrol promote")[2])

    args = printed_promotion()
    assert args[1] == "--tracking.uri"
    promote_command.run(args)
    assert "Champion: models:/printed@champion" in capsys.readouterr().out
    # Where the database is the folder's own, nothing need be named.
    (tmp_path / "runs").symlink_to(own_run.parent)
    assert printed_promotion() == ["printed"]
    promote_command.run(["printed"])
    assert "already the champion" in capsys.readouterr().out


def test_figures_of_an_evaluation_are_in_the_card_and_decide(
    own_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "judged"
    data = DataInput("wood (test)", "2" * 64, "/data", {}, context="evaluation")
    with results_in(out, "quality", TrackingConfig(), data) as tracker:
        report = Report(out, "How good?", of_budget("smallest"))
        report.rows = [{"source": "ours"}]
        report.publish(tracker, Table("", ("a",), ()), {"a": 1}, {"ours/KID": 0.25})
    done = register_run(own_run, "judged", evaluations=[out])
    card = pull("models:/judged@candidate", tmp_path / "out", done.uri)
    assert card.evaluation == {"quality/ours/KID": 0.25}
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| quality/ours/KID | 0.25 |" in page
    # What the figures cannot show goes with them.
    (caution,) = [f"quality: {caveat}" for caveat in of_budget("smallest")]
    assert card.cautions == [caution]
    assert page.index("## Evaluation") < page.index(f"**Caution: {caution}**")
    version = mlflow.MlflowClient(done.uri, done.uri).get_model_version("judged", "1")
    assert version.tags["caution"] == caution
    with results_in(out, "quality", TrackingConfig(), data) as tracker:
        log(tracker, {}, {"ours/KID": 0.5}, [])
    # These weights are registered: only their run gets the new figure.
    assert not register_run(own_run, "judged", evaluations=[out]).is_new
    run = mlflow.MlflowClient(done.uri).get_run(card.run)
    assert run.data.metrics["quality/ours/KID"] == 0.5
    with pytest.raises(UserError, match=r"not a folder of acontrol evaluate"):
        register_run(own_run, "judged-not", evaluations=[tmp_path])


def test_the_champion_goes_only_to_a_better_one(
    server: str, finished_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "contest"
    losses = {"first": 0.3, "worse": 0.4, "better": 0.2}
    champions = []
    for number, (label, loss) in enumerate(losses.items()):
        run = finished_run(
            label, server, seed=number, metrics={"validation_loss": loss, "kid": loss}
        )
        register_run(run, name)
        decision = promote(name, server)
        assert decision.promoted == (label != "worse")
        champions.append(
            mlflow.MlflowClient(server, server)
            .get_model_version_by_alias(name, "champion")
            .version
        )
    assert [int(version) for version in champions] == [1, 1, 3]
    assert decision.reason == (
        "contest version 3: validation_loss 0.2 is better than 0.3 of the champion, version 1 "
        "(lower is better)"
    )
    assert "already" in promote(name, server).reason
    with pytest.raises(SystemExit) as stop:
        promote_command.run([name, "--version", "2", "--tracking.uri", server])
    assert stop.value.code == 1
    assert "0.4 is not better than 0.2" in capsys.readouterr().out
    assert promote(name, server, version="2", metric="kid", higher_is_better=True).promoted
    assert promote(name, server, version="1", force=True).reason.endswith("nothing compared")
    with pytest.raises(UserError, match="its run has no fid"):
        promote(name, server, version="3", metric="fid")


def test_losses_on_other_data_do_not_compare(
    server: str, finished_run: Callable[..., Path]
) -> None:
    metrics = {"validation_loss": 0.3, "kid": 0.1}
    register_run(finished_run("a", server, seed=1, metrics=metrics), "data-moves")
    promote("data-moves", server)
    other = finished_run("b", server, seed=2, metrics=metrics, data_digest="2" * 64)
    register_run(other, "data-moves")
    with pytest.raises(UserError, match="are not comparable: data_digest differ"):
        promote("data-moves", server)
    assert not promote("data-moves", server, metric="kid").promoted


def test_a_run_before_a_setting_did_what_is_its_default(server: str) -> None:
    client, version = mlflow.MlflowClient(server, server), ModelVersion("m", "1", 0)

    def logged(**data: str) -> Run:
        run_id = client.create_run("0").info.run_id
        for name, value in data.items():
            client.log_param(run_id, f"data.{name}", value)
        return client.get_run(run_id)

    early, plain = logged(), logged(target_view="image", target_px="None")
    near = logged(target_view="region", target_px="96")
    assert _differences(version, version, plain, early) == []
    assert _differences(version, version, near, early) == ["data.target_view", "data.target_px"]


def test_a_bad_run_is_not_registered(
    server: str, finished_run: Callable[..., Path], tmp_path: Path
) -> None:
    assert "no such folder" in error_of(register.run, tmp_path / "none", "x")
    assert "no run.json" in error_of(register.run, tmp_path, "x")
    short = finished_run("short", server, steps=4)
    assert "it has 4 of 10 steps" in error_of(register.run, short, "x")
    assert "need letters" in error_of(register.run, short, "a/b")
    assert "need letters" in error_of(train.run, "tiny", "--register", "../x")
    damaged = finished_run("damaged", server)
    file = damaged / "adapter" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"semantic_dim": 65}))
    assert "needs proj.weight" in error_of(register.run, damaged, "x")
    with pytest.raises(UserError, match="no version with alias 'candidate'"):
        promote("x", server)


def test_a_bad_uri_is_not_pulled(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Not where a demo left its runs/mlflow.db.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    out = tmp_path / "out"
    args = ("--out", out, "--tracking.uri", server)
    assert "no such model" in error_of(pull_command.run, "models:/none@champion", *args)
    assert "no such model" in error_of(pull_command.run, "models:/none/3", *args)
    assert "need models:/" in error_of(pull_command.run, "models:/a/b/c", *args)
    assert "need models:/" in error_of(pull_command.run, "runs:/a/b", *args)
    assert "--tracking.uri" in error_of(pull_command.run, "models:/a@b", "--out", out)
    away = ("--out", out, "--tracking.uri", "http://me:secret@127.0.0.1:9")
    message = error_of(pull_command.run, "models:/a@b", *away)
    assert "MLflow at http://127.0.0.1:9" in message
    assert "secret" not in message
    assert list(tmp_path.iterdir()) == []
