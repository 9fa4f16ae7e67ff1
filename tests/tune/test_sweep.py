"""A sweep on a real Ray cluster, killed in its course and continued by the same command."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from acontrol.errors import UserError
from launch import shard
from launch.train import read_config
from tests.launch import commands
from tune import search
from tune.record import Outcome, Sweep

TRIALS = 2


@pytest.fixture(scope="module")
def shards(built_in_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "shards"
    shard.run([str(built_in_data), "--out", str(out), "--split", "all", "--shard-size", "5"])
    return out


def options(shards: Path, output: Path, steps: str = "1", at_once: int = 1) -> list[object]:
    return [
        *("tiny", "--data.shards", shards, "--output", output, "--optim.steps", 4),
        *("--optim.batch-size", 4, "--samples.steps", 2, "--validation.drawings", 2),
        *("--cluster.num-workers", 1, "--max-concurrent", at_once, "--scheduler", "none"),
        # The last learning rate makes a trial fail: no step after its first counts.
        *("--search", "grid", "--no-default-space", "--space", f"asea.steps={steps}"),
        "optim.learning_rate=1e-3,1e30",
    ]


def ended(folder: Path) -> dict[Path, int]:
    """When each file was written of trials that have ended: another go would write anew."""
    return {
        file: file.stat().st_mtime_ns
        for outcome in folder.glob("trials/*/outcome.json")
        for file in outcome.parent.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def killed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose driver was killed with its workers once a trial had ended."""
    folder = tmp_path_factory.mktemp("killed") / "sweep"
    process = commands.start("tune.search", *options(shards, folder))
    end = time.monotonic() + 300
    while not ended(folder) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    commands.kill_with_children(process)
    return folder


def test_a_killed_sweep_continues(
    killed: Path, shards: Path, ray_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = Sweep.read(killed).outcomes()
    assert 0 < len(outcomes) < TRIALS
    before = ended(killed)

    done = commands.run("tune.search", *options(shards, killed), cluster=ray_address)
    assert done.returncode == 0, done.stderr
    sweep = Sweep.read(killed)
    outcomes = sweep.outcomes()
    assert len(outcomes) == TRIALS
    # No trial that had ended is repeated.
    assert before.items() <= ended(killed).items()
    failed = {name for name, outcome in outcomes.items() if outcome.status == "failed"}
    assert {outcomes[name].values["optim.learning_rate"] for name in failed} == {1e30}
    assert len(failed) == TRIALS // 2
    assert all("is nan: training diverged" in outcomes[name].failure for name in failed)
    for name in set(outcomes) - failed:
        assert outcomes[name].status == "finished"
        assert outcomes[name].metrics["step"] == 4

    database = sqlite3.connect(killed.parent / "mlflow.db")
    nested = "select count(*) from tags where key = 'mlflow.parentRunId' and value = ?"
    assert database.execute(nested, [sweep.parent_run]).fetchone() == (TRIALS,)
    states = "select status, count(*) from runs group by status"
    assert dict(database.execute(states)) == {"FINISHED": 2, "FAILED": 1}
    database.close()
    # Which parameter matters takes more than one trial that ended well: see below.
    names = {"best.json", "trials.csv", "parallel-coordinates.png"}
    assert names <= {path.name for path in killed.iterdir()}
    logged = {path.name for path in (killed.parent / "artifacts").rglob("*") if path.is_file()}
    assert names <= logged

    # The same command once more has nothing to do; another one is refused.
    search.run([str(option) for option in options(shards, killed)])
    assert capsys.readouterr().out.splitlines()[-1].startswith("Best trial's config: ")
    assert before.items() <= ended(killed).items()
    other = [*options(shards, killed), "--optim.batch-size", 2]
    with pytest.raises(UserError, match=r"other settings \(optim\.batch_size: 4 -> 2\)"):
        search.run([str(option) for option in other])

    best = read_config(["--config", str(killed / "best.json"), "--output", "run"])
    assert best.optim.learning_rate == 1e-3
    assert best.data.shards == str(shards)


@pytest.mark.slow
def test_the_best_of_trials_side_by_side_trains(
    shards: Path, ray_address: str, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    four = options(shards, folder, steps="0,1", at_once=2)
    done = commands.run("tune.search", *four, cluster=ray_address)
    assert done.returncode == 0, done.stderr
    assert len(Sweep.read(folder).outcomes()) == 4
    assert (folder / "parameter-importance.png").is_file()
    trained = commands.run(
        *("launch.train", "--config", folder / "best.json", "--output", tmp_path / "run"),
        cluster=ray_address,
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "adapter").is_dir()


def test_an_outcome_that_was_cut_off_counts_as_none(tmp_path: Path) -> None:
    outcome = Outcome(status="finished", values={"sga.scale": 1.0}, metrics={"step": 4.0})
    outcome.write(tmp_path)
    assert Outcome.read(tmp_path) == outcome
    os.truncate(tmp_path / "outcome.json", 10)
    assert Outcome.read(tmp_path) is None
