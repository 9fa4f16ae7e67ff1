"""What the driver decides, without starting Ray."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.train import ControllerError, FailureConfig, WorkerGroupError
from sqlalchemy import create_engine

from acontrol.config import (
    ClusterConfig,
    CsmConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainedOn,
)
from acontrol.data.lock import only_launch
from acontrol.errors import UserError
from acontrol.networks.load import BaseModels
from acontrol.runs.cluster import scaling
from acontrol.runs.mlflow_client import reaching
from acontrol.runs.paths import absolute
from acontrol.runs.record import Launch, RunRecord
from acontrol.runs.tracking import Tracker
from acontrol.train.fit import Restarts, root_cause
from acontrol.train.plan import RunPlan
from acontrol.train.resume import known_mlflow_run
from launch.train import read_config


class WorkerHealthCheckFailedError(Exception):
    """By this name Ray says that a worker died."""


class Failed(Exception):
    """As Ray Train reports a failed group."""

    def __init__(self, failures):
        super().__init__("Training failed due to worker errors:\n...")
        self.worker_failures = failures


GLOO = RuntimeError("[gloo] connection closed by peer")


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        (
            {0: RuntimeError("[gloo] closed"), 1: WorkerHealthCheckFailedError()},
            "Worker 1 died",
        ),
        ({0: RuntimeError("[gloo] closed"), 1: UserError("shard x is damaged")}, "shard x"),
        ({1: OSError("b"), 0: ValueError("a\nb")}, "Worker 0 failed: ValueError: a b"),
        ({1: KeyError("b"), 0: RuntimeError("[gloo]")}, "Worker 1 failed: KeyError: 'b'"),
    ],
)
def test_the_cause_is_named_and_not_its_victim(failures, words) -> None:
    assert str(root_cause(Failed(failures))).startswith(words)


def test_an_error_of_the_users_is_not_retried() -> None:
    # Ray's own policy, with which its controller decides.
    from ray.train.v2._internal.execution.failure_handling import (
        FailureDecision,
        create_failure_policy,
    )

    policy = create_failure_policy(FailureConfig(max_failures=-1))
    again = Restarts(-1)
    failures = {0: RuntimeError("[gloo] closed"), 1: UserError("shard x is damaged")}
    with pytest.raises(ControllerError) as stop:
        again.after_exception(None, failures)
    assert policy.make_decision(stop.value) == FailureDecision.RAISE
    assert str(root_cause(stop.value)) == "shard x is damaged"
    del failures[1]
    again.after_exception(None, failures)
    assert policy.make_decision(WorkerGroupError("x", failures)) == FailureDecision.RETRY


def test_a_mistake_of_the_program_is_not_retried_for_ever(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One restart, as the cluster may be to blame; a checkpoint in between allows another."""
    restarts = Restarts(-1)
    mistake = {0: RuntimeError("[gloo] closed"), 1: TypeError("an argument is missing")}
    lost = {0: ConnectionError("no answer"), 1: ConnectionError("no answer")}
    for failures in (mistake, lost, lost, mistake):
        restarts.after_exception(None, failures)
        assert capsys.readouterr().out.endswith(". Restarting from the newest checkpoint\n")
    restarts.after_report(None, [{"step": 1}], None)
    restarts.after_exception(None, mistake)
    with pytest.raises(ControllerError) as stop:
        restarts.after_exception(None, mistake)
    assert str(root_cause(stop.value)) == (
        "Worker 1 failed: TypeError: an argument is missing, again after a restart"
    )


def test_no_restart_is_announced_that_does_not_come(
    capsys: pytest.CaptureFixture[str],
) -> None:
    restarts = Restarts(1)
    for _ in range(2):
        restarts.after_exception(None, {0: OSError("no answer")})
    assert capsys.readouterr().out.count("Restarting") == 1


def test_ray_gets_the_workers_resources() -> None:
    cluster = ClusterConfig(
        num_workers=3,
        cpus_per_worker=2.5,
        resources={"memory": 8e9, "fast_disk": 1},
        accelerator_type="H100",
        placement="STRICT_SPREAD",
    )
    settings = scaling(cluster, on_gpus=True)
    assert settings.placement_strategy == "STRICT_SPREAD"
    assert (settings.num_workers, settings.use_gpu, settings.accelerator_type) == (
        3,
        True,
        "H100",
    )
    # Ray's own sum over the workers.
    assert settings.total_resources == pytest.approx(
        {
            "CPU": 7.5,
            "GPU": 3,
            "memory": 24e9,
            "fast_disk": 3,
            "accelerator_type:H100": 0.003,
        }
    )
    plain = scaling(ClusterConfig(num_workers=2), on_gpus=False)
    assert plain.total_resources == {"CPU": 2}
    assert not plain.use_gpu


def test_resources_come_from_the_command_line() -> None:
    config = read_config(["tiny", "--cluster.resources", "memory", "8e9", "fast_disk", "1"])
    assert config.cluster.resources == {"memory": 8e9, "fast_disk": 1}
    with pytest.raises(UserError, match="GPU have settings of their own"):
        read_config(["tiny", "--cluster.resources", "GPU", "2"])
    with pytest.raises(UserError, match="greater than 0"):
        read_config(["tiny", "--cluster.resources", "fast_disk", "0"])


def test_a_second_launch_is_kept_out(tmp_path) -> None:
    run = tmp_path / "run"
    kept_out = pytest.raises(UserError, match="another launch")
    with only_launch(run), kept_out, only_launch(run):
        pass
    with only_launch(run):
        pass


def test_a_run_without_shards_creates_nothing(tmp_path) -> None:
    run = tmp_path / "run"
    config = RunConfig(output=str(run), data={"shards": str(tmp_path / "none")})
    with pytest.raises(UserError, match=str(tmp_path / "none")), RunPlan.locked(config):
        pass
    assert not run.exists()


def started(run, config: RunConfig) -> str:
    tracker = Tracker.start(config, run, known_mlflow_run(run, config, None))
    RunRecord.of(run, "a", tracker.run_id, tracker.uri).write(run)
    (run / "config.json").write_text(config.model_dump_json())
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish("KILLED")
    return tracker.run_id


def test_an_mlflow_run_is_continued_only_with_the_same_settings(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = RunConfig(output=str(tmp_path))
    first = started(tmp_path, config)
    assert started(tmp_path, config) == first
    slower = config.model_copy(update={"optim": OptimConfig(learning_rate=1e-5)})
    assert started(tmp_path, slower) != first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert known_mlflow_run(tmp_path, slower, None) is None


def test_a_step_that_mlflow_has_is_not_sent_again(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = RunConfig(output=str(tmp_path))
    run = started(tmp_path, config)
    tracker = Tracker.start(config, tmp_path, run)
    tracker.log_metrics({"loss": 5.0}, 1)
    tracker.log_metrics({"loss": 2.0}, 2)
    tracker.log_metrics({"validation_loss": 3.0}, 1)
    assert tracker.finish("FINISHED")
    history = tracker.client.get_metric_history(run, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 2.0)]
    assert len(tracker.client.get_metric_history(run, "validation_loss")) == 1


def test_a_deleted_experiment_and_a_place_of_files_are_explained(tmp_path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = RunConfig(tracking={"uri": uri, "experiment": "old"})
    client = MlflowClient(tracking_uri=uri)
    number = client.create_experiment("old")
    client.delete_experiment(number)
    with pytest.raises(UserError, match=f"'old' was deleted.*--experiment-id {number}"):
        Tracker.start(config, tmp_path, None)
    client.create_experiment("elsewhere", artifact_location="/proc/files")
    config = RunConfig(tracking={"uri": uri, "experiment": "elsewhere"})
    with pytest.raises(UserError, match=r"files in /proc/files/.*--serve-artifacts"):
        Tracker.start(config, tmp_path, None)


def test_a_database_that_cannot_be_opened_is_one_line(tmp_path) -> None:
    uri = f"sqlite:///{tmp_path}"  # A folder. MLflow itself tries for minutes.
    refused = pytest.raises(
        UserError, match=r"MLflow at sqlite.*: unable to open database file$"
    )
    with refused, reaching(uri):
        create_engine(uri).connect()


def test_an_mlflow_that_is_no_address_is_one_line(tmp_path) -> None:
    config = RunConfig(tracking={"uri": "foo://x"})
    with pytest.raises(UserError, match="MLflow at foo://x"):
        Tracker.start(config, tmp_path, None)


@pytest.mark.parametrize("name", ["queries", "pooled"])
def test_the_seed_decides_the_new_adapter(tiny_base: BaseModels, tmp_path, name) -> None:
    from acontrol.train.worker import new_adapter

    class Reader:
        trained_on = TrainedOn(categories=("wood",), split="all")
        index = type("Index", (), {"split": "all", "digest": "d", "trained_on": trained_on})

    made = []
    for seed in (1, 1, 2):
        data = DataConfig(target_view="region", target_px=96)
        config = RunConfig(seed=seed, csm=CsmConfig(mode=name), data=data)
        launch = Launch(config, tmp_path, "", "", "b", False)
        adapter = new_adapter(tiny_base, launch, Reader(), None)
        card = adapter.config.card
        assert (card["target_crop"], card["target_px"]) == (4.0, 96)
        made.append(adapter.state_dict())
    assert all(made[0][key].equal(made[1][key]) for key in made[0])
    alike = all(made[0][key].equal(made[2][key]) for key in made[0])
    assert alike == (name == "queries")  # There the start is a copy, not a draw.


def test_relative_paths_are_refused_in_a_ray_job_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    config = RunConfig(output="tiny", data={"shards": "s"})
    resolved = absolute(config)
    assert resolved.output == str(tmp_path / "tiny")
    assert resolved.data.shards == str(tmp_path / "s")
    assert resolved.base.path == "tiny", "the built-in base, whatever is here"
    job = json.dumps({"metadata": {"job_submission_id": "raysubmit_x"}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    with pytest.raises(UserError, match="--output tiny: a Ray job"):
        absolute(config)
    assert absolute(resolved) == resolved
    database = resolved.model_copy(
        update={"tracking": RunConfig(tracking={"uri": "sqlite:///x.db"}).tracking}
    )
    with pytest.raises(UserError, match=r"MLflow's sqlite:///x\.db"):
        absolute(database)
    bucket = resolved.model_copy(update={"output": "s3://bucket/run"})
    assert absolute(bucket).output == "s3://bucket/run"
    remote = resolved.model_copy(update={"init": "s3://bucket/adapter"})
    with pytest.raises(UserError, match="must be a folder"):
        absolute(remote)


def test_too_few_gpus_are_an_error(monkeypatch) -> None:
    from acontrol.runs import cluster

    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"GPU": 2.0, "CPU": 8.0})
    assert cluster.uses_gpus(ClusterConfig(num_workers=2))
    assert not cluster.uses_gpus(ClusterConfig(num_workers=4, use_gpu=False))
    with pytest.raises(UserError, match="2 GPUs for 4 workers"):
        cluster.uses_gpus(ClusterConfig(num_workers=4))
    with pytest.raises(UserError, match=r"4 workers: give --num-workers 2$"):
        cluster.uses_gpus(ClusterConfig(num_workers=4), "--num-workers")


def test_far_more_workers_than_cores_are_refused(monkeypatch) -> None:
    """Before Ray starts any; a share of a core each says that they are meant."""
    from acontrol.runs import cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "CURRENT_CLUSTER", Path("/nowhere"))
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **_: None)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    refused = pytest.raises(UserError, match=r"64 workers of 1 cores .* 2: name at most 8")
    with refused, cluster.joined_cluster(ClusterConfig(num_workers=64)):
        pass
    with cluster.joined_cluster(ClusterConfig(num_workers=64, cpus_per_worker=0.1)):
        pass


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch) -> None:
    from acontrol.runs import cluster

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    answers = cluster.joined_cluster(ClusterConfig())
    with pytest.raises(UserError, match=r"RAY_ADDRESS 127\.0\.0\.1:9: no cluster"), answers:
        pass


def test_a_config_file_overrides_the_preset(tmp_path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"optim": {"steps": 9}}')
    config = read_config(["mvtec-sd15", f"--config={file}"])
    assert config.optim.steps == 9
    assert config.base.path.startswith("stable-diffusion")
    for text, words in (("[1]", "need a JSON object"), ("{", "not JSON")):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            read_config(["tiny", "--config", str(file)])
