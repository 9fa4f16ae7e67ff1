"""What a sweep would do, found out before anything runs."""

import pytest

from acontrol.errors import UserError
from acontrol.presets import preset
from launch.train import read_config_of
from tune import search
from tune.plan import Plan, SweepConfig
from tune.space import Choice


def plan_of(*words: str) -> Plan:
    return Plan(read_config_of(SweepConfig, ["tiny", *words], search.PROG, None))


def test_dropout_rates_are_ranked_by_guided_drawings_and_that_is_said() -> None:
    plan = plan_of()
    assert plan.objective == "guided_agreement"
    assert "dropout.text" in plan.space
    assert "dropout.both" in plan.notes[0]
    assert plan.run.validation.drawings > 0
    assert plan.trials == 12


def test_the_loss_ranks_what_it_can() -> None:
    plan = plan_of("--no-default-space", "--space", "sga.scale=0.5:1.5")
    assert (plan.objective, plan.notes) == ("validation_loss", [])


def test_an_objective_leaves_out_what_it_cannot_judge_of_the_default() -> None:
    plan = plan_of("--objective", "validation_loss")
    assert set(plan.space) == {"sga.scale", "asea.steps", "asea.step_size"}
    assert plan.notes[0].startswith("Not searched: dropout.both")
    plan = plan_of("--objective", "validation_energy")
    assert set(plan.space) == {"asea.steps", "asea.step_size"}


@pytest.mark.parametrize(
    ("objective", "word"),
    [
        ("validation_loss", "dropout.text=0:0.2"),
        ("validation_loss", "data.reference_view=whole,region"),
        ("validation_energy", "sga.scale=0:1"),
    ],
)
def test_an_objective_that_cannot_judge_what_was_named_is_refused(
    objective: str, word: str
) -> None:
    with pytest.raises(UserError, match="cannot judge"):
        plan_of("--objective", objective, "--space", word)


def test_a_fixed_value_is_not_searched() -> None:
    plan = plan_of("--space", "asea.steps=5", "dropout.text=0", "sga.scale=1")
    assert plan.run.asea.steps == 5
    assert set(plan.space) == {"asea.step_size", "dropout.semantic", "dropout.both"}
    with pytest.raises(UserError, match="every key of the space has one value"):
        plan_of("--no-default-space", "--space", "asea.steps=5")
    with pytest.raises(UserError, match="nothing to search"):
        plan_of("--no-default-space")


def test_a_grid_has_its_own_size() -> None:
    words = (
        "--search",
        "grid",
        "--no-default-space",
        "--space",
        "asea.steps=1,3",
        "sga.scale=0,1",
    )
    assert plan_of(*words).trials == 4
    with pytest.raises(UserError, match=r"the grid has 4 trials, not 7"):
        plan_of(*words, "--trials", "7")
    with pytest.raises(UserError, match=r"asea\.bound is a range, give it values"):
        plan_of(*words, "asea.bound=0.1:0.2")
    default = plan_of("--search", "grid")
    assert all(isinstance(one, Choice) for one in default.space.values())


def test_a_dry_run_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    search.run(["tiny", "--dry-run"])
    out = capsys.readouterr().out
    assert "asea.steps: 1,3,5" in out
    assert "trials: 12 by random search" in out
    assert f"each of {preset('tiny').optim.steps} steps" in out


def test_a_sweep_needs_data_and_a_place() -> None:
    with pytest.raises(UserError, match=r"--data\.shards DIR and --output SWEEP"):
        search.run(["tiny"])


def test_a_searcher_that_is_missing_is_one_line(tmp_path) -> None:
    from tune.sweep import searcher

    for name in ("nonsense", "nevergrad"):
        with pytest.raises(UserError, match=f"--search {name}"):
            searcher(name, "validation_loss", "min", 0)
