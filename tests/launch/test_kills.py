"""Real workers killed at random steps, in saves and at reports: not a bit is lost."""

import random
from pathlib import Path

import pytest

from benchmarks.disturbed import Fault
from benchmarks.trial import (
    bytes_wrong,
    carry_out,
    config_of,
    losses_in_mlflow,
    steps_noted,
    steps_redone,
)
from launch import generate

pytestmark = pytest.mark.slow
COMPILED = ("--runtime.compile", "blocks", "--asea.steps", 3)  # The preset takes no steps.
ON_ONE_GPU = ("--cluster.num-workers", 1, "--cluster.use-gpu", True, "--runtime.deterministic")
STEPS, EVERY, KILLS = 44, 4, 10


def drawn_kills(seed: int) -> tuple[Fault, ...]:
    """Half after a random step, half in the saves and reports of random checkpoints."""
    draw = random.Random(seed)
    kills = [
        Fault(kind="kill", rank=draw.randrange(2), step=step)
        for step in draw.sample(range(1, STEPS), KILLS - 5)
    ]
    checkpoints = draw.sample(range(EVERY, STEPS, EVERY), 5)
    kills += [Fault(kind="kill", rank=0, step=step, phase="save") for step in checkpoints[:3]]
    kills += [
        Fault(kind="kill", rank=draw.randrange(2), step=step, phase="report")
        for step in checkpoints[3:]
    ]
    return tuple(kills)


@pytest.mark.parametrize("stage", [1, 2])
def test_ten_kills_change_nothing(shards: Path, tmp_path: Path, stage: int) -> None:
    shape = {"stage": stage, "steps": STEPS, "every": EVERY}
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    undisturbed = carry_out(calm, config_of(calm / "run", shards, **shape))
    assert undisturbed.statuses == [0], undisturbed.errors
    kills = drawn_kills(stage)
    disturbed = carry_out(wild, config_of(wild / "run", shards, **shape), kills)
    assert disturbed.statuses == [0], disturbed.errors
    assert len(disturbed.happened) == len(kills)

    assert bytes_wrong(disturbed.run, undisturbed.run) == 0
    assert losses_in_mlflow(disturbed.run) == losses_in_mlflow(undisturbed.run)
    once, again = steps_noted(calm / "notes"), steps_noted(wild / "notes")
    assert again.keys() == once.keys()
    for place, (first,) in once.items():
        assert set(again[place]) == {first}, place
    redone = steps_redone(wild / "notes")
    assert len(redone) == len(kills)
    assert all(0 <= steps <= EVERY for _, steps in redone)
    print(f"stage {stage}: {len(kills)} kills, {sum(n for _, n in redone)} steps redone")


def one_kill_changes_nothing(shards: Path, tmp_path: Path, stage: int, *more: object) -> Path:
    shape = {"stage": stage, "steps": 8, "every": 2, "more": more}
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    undisturbed = carry_out(calm, config_of(calm / "run", shards, **shape))
    assert undisturbed.statuses == [0], undisturbed.errors
    kill = (Fault(kind="kill", rank=0, step=5),)
    disturbed = carry_out(wild, config_of(wild / "run", shards, **shape), kill)
    assert disturbed.statuses == [0], disturbed.errors
    assert len(disturbed.happened) == 1
    assert bytes_wrong(disturbed.run, undisturbed.run) == 0
    return disturbed.run


def test_a_kill_changes_nothing_with_a_compiled_unet(shards: Path, tmp_path: Path) -> None:
    run = one_kill_changes_nothing(shards, tmp_path, 1, *COMPILED)
    assert any((run / "compiled").rglob("*.py"))  # Which the second start read.


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 3])
def test_a_kill_changes_nothing_on_one_gpu(
    shards: Path, built_in_data: Path, tmp_path: Path, stage: int, precision: str
) -> None:
    more = (*ON_ONE_GPU, "--runtime.precision", precision)
    run = one_kill_changes_nothing(shards, tmp_path, stage, *more)
    drawn = tmp_path / "drawn"
    generate.run(
        [
            *("--model", str(run), "--data", str(built_in_data), "--out", str(drawn)),
            *("--split", "all", "--count", "1", "--steps", "2", "--gate", "keep"),
        ]
    )
    assert list(drawn.rglob("*.png"))


@pytest.mark.gpu
def test_a_kill_changes_nothing_with_a_compiled_unet_on_one_gpu(
    shards: Path, tmp_path: Path
) -> None:
    one_kill_changes_nothing(shards, tmp_path, 1, *ON_ONE_GPU, *COMPILED)
