import contextlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from acontrol.config import BaseConfig, OptimConfig, RunConfig
from acontrol.errors import UserError
from acontrol.method.sga import SemanticAdapter
from acontrol.train.checkpoint import (
    MANIFEST,
    AdapterState,
    TrainState,
    export_adapter,
    newest_checkpoint,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from acontrol.train.resume import changed_settings, check_continues
from tests.train.checkpoints import checkpoint_at, files_of, small_adapter


@pytest.fixture
def adapter(card) -> SemanticAdapter:
    return small_adapter(card().model_dump(mode="json"))


WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = [
    "adapter/config.json",
    f"adapter/{WEIGHTS}",
    "manifest.json",
    "moments.safetensors",
    "state.json",
]


def test_a_checkpoint_comes_back_whole(adapter, run_path) -> None:
    path = checkpoint_at(adapter, run_path, 6)
    assert files_of(path) == FILES
    checkpoint = read_checkpoint(path)
    assert (checkpoint.state.step, checkpoint.state.position) == (6, 48)
    state = checkpoint.adapter_state()
    assert torch.equal(state.weights["proj.weight"], adapter.proj.weight)
    assert torch.equal(state.moments["exp_avg.proj.weight"], adapter.proj.weight * 6)
    assert state.steps == 6


def test_an_average_is_exported_and_the_weights_come_back(adapter, tmp_path) -> None:
    average = {name: value.clone() for name, value in adapter.state_dict().items()}
    weights = {name: value + 1 for name, value in average.items()}
    state = TrainState(
        step=3, position=24, data_digest="d", base_digest="b", config=RunConfig()
    )
    kept = AdapterState(weights, {"exp_avg.proj.weight": torch.zeros(16, 4)}, 3, average)
    path = write_checkpoint(tmp_path / "launches" / "a", adapter, kept, state)
    state = read_checkpoint(path).adapter_state()
    assert state.averages is not None
    assert torch.equal(state.averages["proj.weight"], average["proj.weight"])
    assert torch.equal(state.weights["proj.weight"], weights["proj.weight"])
    assert list(state.moments) == ["exp_avg.proj.weight"]
    exported = SemanticAdapter.from_pretrained(path / "adapter")
    assert torch.equal(exported.proj.weight, average["proj.weight"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_a_damaged_checkpoint_is_never_loaded(adapter, run_path, name, damage) -> None:
    checkpoint_at(adapter, run_path, 5)
    newest = checkpoint_at(adapter, run_path, 10)
    file = newest / name
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        file.write_bytes(
            content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )
    else:
        file.unlink()
    with pytest.raises(ValueError, match=r"manifest|damaged|missing"):
        read_checkpoint(newest)
    checkpoint = newest_checkpoint(run_path)
    assert checkpoint is not None
    assert checkpoint.state.step == 5


def test_the_furthest_checkpoint_of_all_launches_is_found(adapter, run_path) -> None:
    for launch, step in (("b", 5), ("a", 15), ("c", 10)):
        checkpoint_at(adapter, run_path, step, launch)
    checkpoint = newest_checkpoint(run_path)
    assert checkpoint is not None
    assert (checkpoint.state.step, checkpoint.path.parent.name) == (15, "a")


def test_an_unfinished_checkpoint_is_no_checkpoint(adapter, run_path) -> None:
    (checkpoint_at(adapter, run_path, 5) / MANIFEST).unlink()
    assert newest_checkpoint(run_path) is None


def test_only_damaged_checkpoints_are_no_new_start(adapter, run_path) -> None:
    (checkpoint_at(adapter, run_path, 5) / "state.json").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint verifies"):
        newest_checkpoint(run_path)


def test_an_empty_run_starts_at_step_0(run_path) -> None:
    assert newest_checkpoint(run_path / "nothing") is None


def test_the_exported_adapter_is_what_diffusers_saves(adapter, tmp_path) -> None:
    path = checkpoint_at(adapter, tmp_path, 5)
    adapter.save_pretrained(tmp_path / "saved")
    config, weights = (
        [(folder / name).read_bytes() for folder in (path / "adapter", tmp_path / "saved")]
        for name in ("config.json", WEIGHTS)
    )
    assert config[0] == config[1]
    # But for its checksum.
    torch.testing.assert_close(load(weights[0]), load(weights[1]), rtol=0, atol=0)


def test_the_manifest_is_written_last(adapter, tmp_path, monkeypatch) -> None:
    replaced = []

    def record(source, target, real=os.replace):
        folder = Path(target).parent
        replaced.append((Path(target).name, files_of(folder)))
        real(source, target)

    monkeypatch.setattr(os, "replace", record)
    checkpoint_at(adapter, tmp_path, 5)
    name, present = replaced[-1]
    assert name == MANIFEST
    assert set(FILES) - {MANIFEST} <= set(present)
    assert MANIFEST not in present


def test_pruning_keeps_the_furthest(adapter, run_path) -> None:
    paths = [checkpoint_at(adapter, run_path, step) for step in (5, 10, 15, 20)]
    (paths[2] / MANIFEST).unlink()
    prune(run_path, keep=2, newest=paths[3])
    assert [path.exists() for path in paths] == [False, True, False, True]


def test_pruning_never_takes_the_checkpoint_just_written(adapter, run_path) -> None:
    good = checkpoint_at(adapter, run_path, 15, "a")
    damaged = checkpoint_at(adapter, run_path, 20, "a")
    (damaged / "state.json").write_text("{}")
    newest = checkpoint_at(adapter, run_path, 17, "b")
    prune(run_path, keep=1, newest=newest)
    assert [path.exists() for path in (good, damaged, newest)] == [False, False, True]
    checkpoint = newest_checkpoint(run_path)
    assert checkpoint is not None
    assert checkpoint.path == newest


def test_an_export_replaces_the_earlier_one(adapter, run_path) -> None:
    export_adapter(checkpoint_at(adapter, run_path, 5), run_path / "adapter")
    with torch.no_grad():
        adapter.proj.weight.mul_(2)
    export_adapter(checkpoint_at(adapter, run_path, 10), run_path / "adapter")
    weights = load((run_path / "adapter" / WEIGHTS).read_bytes())
    assert torch.equal(weights["proj.weight"], adapter.proj.weight)
    assert sorted(path.name for path in run_path.iterdir()) == ["adapter", "launches"]


def test_a_kill_during_an_export_leaves_a_whole_adapter(adapter, tmp_path, monkeypatch) -> None:
    target = tmp_path / "adapter"
    export_adapter(checkpoint_at(adapter, tmp_path, 5), target)
    exports = [adapter.proj.weight.detach().clone()]
    with torch.no_grad():
        adapter.proj.weight.mul_(2)
    checkpoint = checkpoint_at(adapter, tmp_path, 10)
    exports.append(adapter.proj.weight.detach())

    class Killed(BaseException):
        pass

    # Killed before the first, the second, ... of the calls that change anything.
    for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
        whole = getattr(os, name)
        for last in range(3):
            calls = 0

            def until(*args, whole=whole, last=last, **more):
                nonlocal calls
                calls += 1
                if calls > last:
                    raise Killed
                return whole(*args, **more)

            with monkeypatch.context() as patch, contextlib.suppress(Killed):
                patch.setattr(os, name, until)
                export_adapter(checkpoint, target)
            loaded = SemanticAdapter.from_pretrained(target).proj.weight
            assert any(torch.equal(loaded, weight) for weight in exports), (name, last)


def test_settings_that_shape_the_numbers_are_compared() -> None:
    before = RunConfig()
    longer = before.model_copy(update={"optim": OptimConfig(steps=7), "output": "elsewhere"})
    assert changed_settings(before, longer) == []
    faster = before.model_copy(update={"optim": OptimConfig(learning_rate=1e-3), "seed": 4})
    moved = before.model_copy(update={"base": BaseConfig(path="/new/place")})
    assert changed_settings(before, moved) == []
    cosine = before.model_copy(update={"optim": OptimConfig(schedule="cosine")})
    later = before.model_copy(update={"optim": OptimConfig(schedule="cosine", steps=9)})
    assert changed_settings(cosine, later) == ["optim.steps: 30000 -> 9"]
    assert changed_settings(before, faster) == [
        "seed: 0 -> 4",
        "optim.learning_rate: 0.0001 -> 0.001",
    ]


def test_fewer_steps_than_the_run_has_are_refused(adapter, tmp_path) -> None:
    """Its adapter would be that of more steps than the command says."""
    checkpoint = read_checkpoint(checkpoint_at(adapter, tmp_path, 6))
    config = RunConfig(output=str(tmp_path), optim=OptimConfig(steps=4))
    with pytest.raises(UserError, match=r"has 6 steps, more than --optim.steps 4"):
        check_continues(checkpoint, config, "d", "b")
    check_continues(checkpoint, RunConfig(output=str(tmp_path)), "d", "b")
