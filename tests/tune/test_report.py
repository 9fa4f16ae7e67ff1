import math
from pathlib import Path

import pytest
from PIL import Image

from acontrol.errors import UserError
from acontrol.presets import preset
from launch.train import read_config
from tune.record import Outcome, Sweep
from tune.report import best_config, best_trial, importance, parallel_coordinates
from tune.space import Choice, Range

SPACE = {
    "sga.scale": Range(low=0.0, high=1.0),
    "asea.rule": Choice(values=("gd", "normalized")),
    "asea.steps": Choice(values=(1, 3)),
}


def outcome(status: str, score: float | None, **values: object) -> Outcome:
    metrics = {} if score is None else {"validation_loss": score, "step": 6.0}
    return Outcome(status=status, values=values, metrics=metrics)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(
        run=preset("tiny").model_copy(update={"output": str(tmp_path)}),
        space=SPACE,
        objective="validation_loss",
        search="random",
        scheduler="asha",
        reduction=3,
        trials=4,
        mlflow_uri="sqlite:///none.db",
        parent_run="p",
    )


def test_the_best_is_among_the_trials_that_ran_to_the_end(sweep: Sweep) -> None:
    outcomes = {
        "a": outcome("finished", 0.5),
        "b": outcome("stopped", 0.1),
        "c": outcome("finished", 0.4),
        "d": outcome("failed", None),
    }
    assert best_trial(sweep, outcomes) == "c"
    upward = sweep.model_copy(update={"objective": "guided_agreement"})
    scores = {
        name: Outcome(status="finished", values={}, metrics={"guided_agreement": one})
        for name, one in (("a", 0.2), ("b", 0.3))
    }
    assert best_trial(upward, scores) == "b"


def test_no_finished_trial_says_what_failed(sweep: Sweep) -> None:
    failed = Outcome(status="failed", values={}, metrics={}, failure="loss is nan at step 3")
    with pytest.raises(UserError, match="no trial finished: loss is nan at step 3"):
        best_trial(sweep, {"a": failed})


def test_the_best_config_is_one_that_training_takes(sweep: Sweep, tmp_path: Path) -> None:
    values = {"sga.scale": 0.7, "asea.rule": "gd", "asea.steps": 1}
    config = best_config(sweep, "a", Outcome(status="finished", values=values, metrics={}))
    file = tmp_path / "best.json"
    file.write_text(config.model_dump_json(indent=1))
    read = read_config(["--config", str(file), "--output", "new"])
    assert (read.sga.scale, read.asea.rule, read.asea.steps) == (0.7, "gd", 1)
    assert read.output == "new"
    assert read.tracking.parent_run is sweep.run.tracking.parent_run or read.tracking.parent_run


def test_importance_finds_the_setting_that_matters() -> None:
    scale = [place / 11 for place in range(12)]
    values = {
        str(place): {
            "sga.scale": one,
            "asea.rule": ("gd", "normalized")[place % 2],
            "asea.steps": (1, 3)[place // 2 % 2],
        }
        for place, one in enumerate(scale)
    }
    scores = {str(place): math.exp(3 * one) for place, one in enumerate(scale)}
    shares, words = importance(SPACE, values, scores)
    assert max(shares, key=lambda key: shares[key]) == "sga.scale"
    assert shares["sga.scale"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)
    assert words["sga.scale"] == "(r +1.00)"
    assert words["asea.rule"] == ""


def test_the_plot_shows_every_trial(tmp_path: Path) -> None:
    values = {"a": {"sga.scale": 0.0, "asea.rule": "gd", "asea.steps": 1}}
    values["b"] = {"sga.scale": 1.0, "asea.rule": "normalized", "asea.steps": 3}
    file = tmp_path / "plot.png"
    scores = {"a": 1.0, "b": 2.0}
    parallel_coordinates(SPACE, values, scores, {"a"}, "a", "validation_loss", file)
    two = Image.open(file).convert("RGB")
    parallel_coordinates(
        SPACE, {"a": values["a"]}, {"a": 1.0}, {"a"}, "a", "validation_loss", file
    )
    one = Image.open(file).convert("RGB")
    assert two.size == one.size
    assert two.tobytes() != one.tobytes()


def test_another_sweep_in_the_same_folder_is_told_apart(sweep: Sweep) -> None:
    sweep.write()
    assert Sweep.read(sweep.folder) == sweep
    other = sweep.model_copy(
        update={"trials": 5, "space": {"sga.scale": Range(low=0.0, high=2.0)}}
    )
    changes = "; ".join(sweep.changes(other))
    assert "trials: 4 -> 5" in changes
    assert "space.sga.scale: 0:1 -> 0:2" in changes
    assert "asea.rule" in changes
    assert sweep.changes(sweep) == []
