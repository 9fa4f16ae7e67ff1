import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest

from acontrol.config import OptimConfig, RunConfig
from acontrol.data.builtin import write_dataset
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.runs import origin
from acontrol.runs.inputs import DataInput
from acontrol.runs.record import RunRecord
from acontrol.runs.server import own_database, server_uri, tracking_store
from acontrol.runs.tracking import Tracker


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


def file_of(folder: Path, recorded: str | None = None) -> Path:
    return Path(tracking_store(None, folder, recorded).uri.removeprefix("sqlite:///"))


def test_outputs_of_a_project_share_one_database(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shared = project / "runs" / "mlflow.db"
    assert file_of(project / "runs" / "a") == file_of(Path("results")) == shared
    assert tracking_store(None, Path("x")).artifacts == project / "runs" / "artifacts"


def test_an_output_elsewhere_has_it_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_of(tmp_path / "disk" / "a") == tmp_path / "disk" / "mlflow.db"
    # A Ray job's current folder is a copy that is thrown away.
    job = '{"metadata": {"job_submission_id": "raysubmit_1"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    inside = tmp_path / "project" / "a"
    assert file_of(inside) == tmp_path / "project" / "mlflow.db"


def test_what_was_begun_elsewhere_continues_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "project" / "runs" / "a"
    run.mkdir(parents=True)
    (run / "mlflow.db").touch()  # As versions before 0.2 left it.
    assert tracking_store(None, run).uri == own_database(run)
    other = tmp_path / "other.db"
    recorded = f"sqlite:///{other}"
    assert file_of(run, recorded) == run / "mlflow.db"  # It is gone.
    other.touch()
    assert file_of(run, recorded) == other
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking_store(None, run, recorded).uri == "http://127.0.0.1:9"
    assert tracking_store("http://x", run).uri == "http://x"


def test_commands_without_an_output_find_the_shared_database(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no runs/mlflow\.db here"):
        server_uri(None)
    Path("runs").mkdir()
    Path("runs", "mlflow.db").touch()
    assert server_uri(None) == f"sqlite:///{tmp_path}/project/runs/mlflow.db"
    assert server_uri("http://x") == "http://x"


def test_a_run_of_the_last_release_continues_in_its_own_database(tmp_path: Path) -> None:
    run = tmp_path / "project" / "runs" / "a"
    run.mkdir(parents=True)
    (run / "mlflow.db").touch()
    config = RunConfig(output=str(run), optim=OptimConfig(steps=2))
    tracker = Tracker.start(config, run, None)
    assert tracker.finish("KILLED")
    record = RunRecord.of(run, "a", tracker.run_id, tracker.uri)
    assert record.mlflow_uri is None  # The folder may move, as before.
    record.write(run)
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    assert record.uri(moved) == own_database(moved)
    assert tracking_store(None, moved, record.mlflow_uri).uri == own_database(moved)


def test_mlflow_shows_who_what_and_with_which_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_dataset(data, num_good=1, num_good_test=1, num_defects=3, categories=("wood",))
    used = DataInput.of_folder(open_folder(data), "train", "training")
    uri = "http://me:secret@host:5000"
    argv = ["/x/bin/acontrol", "train", "tiny", "--tracking.uri", uri]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setenv("ACONTROL_USER", "ada")
    monkeypatch.setenv("ACONTROL_COMMIT", "c" * 40)
    run = tmp_path / "project" / "runs" / "a"
    tracker = Tracker.start(RunConfig(output=str(run)), run, None, used)
    assert tracker.finish("FINISHED")
    logged = mlflow.MlflowClient("sqlite:///runs/mlflow.db").get_run(tracker.run_id)
    assert logged.info.run_name == "train a"
    assert logged.info.user_id == "ada"
    tags = logged.data.tags
    assert tags["mlflow.source.name"] == "acontrol train"
    assert tags["mlflow.source.git.commit"] == "c" * 40
    assert tags["command"] == "acontrol train tiny --tracking.uri http://host:5000"
    assert tags["data_digest"] == used.digest
    (entry,) = logged.inputs.dataset_inputs
    assert entry.dataset.name == "wood (train)"
    assert used.digest.startswith(entry.dataset.digest)
    assert str(data) in entry.dataset.source
    assert '"wood/crack": 1' in entry.dataset.profile
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]


def test_another_data_set_has_another_digest(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, num_good=1, num_good_test=1, num_defects=3, categories=("wood",))
    train, test = (
        DataInput.of_folder(open_folder(data), part, "training") for part in ("train", "test")
    )
    assert train.digest != test.digest
    assert train == DataInput.of_folder(open_folder(data), "train", "training")


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/acontrol", "shard", "X"], ["acontrol", "shard", "X"]),
        (["/x/launch/train.py", "tiny"], ["acontrol", "train", "tiny"]),
        (["/x/tune/search.py", "tiny"], ["acontrol", "search", "tiny"]),
        (["/x/ray/default_worker.py", "--redis-password=x"], []),
    ],
)
def test_a_command_is_named_as_its_user_gave_it(argv: list[str], command: list[str]) -> None:
    assert origin.command_of(argv) == command


def test_the_commit_is_that_of_our_own_checkout_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACONTROL_COMMIT", raising=False)
    file = tmp_path / "origin.py"
    file.touch()
    monkeypatch.setattr(origin, "__file__", str(file))

    def git(*command: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *who, *command], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        origin._checkout_commit.cache_clear()
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    assert origin.git_commit() is None  # Installed inside another project's checkout.
    git("add", "origin.py")
    git("commit", "-q", "-m", "x")
    assert origin.git_commit() == git("rev-parse", "HEAD")
    origin._checkout_commit.cache_clear()
