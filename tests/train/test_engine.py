"""The engine in real gloo ranks with real DeepSpeed, every ZeRO stage."""

import pytest
import torch

from acontrol.config import ClusterConfig, OptimConfig, RunConfig, ZeroConfig
from acontrol.sga import SemanticAdapter
from acontrol.train.engine import AdapterEngine, AdapterState, deepspeed_config
from tests.train.ranks import run_ranks

STAGES = (0, 1, 2, 3)
STEPS, HALF, BATCH = 6, 3, 4


def config_of(stage: int, world_size: int) -> RunConfig:
    return RunConfig(
        optim=OptimConfig(batch_size=BATCH, learning_rate=1e-2),
        zero=ZeroConfig(stage=stage),
        cluster=ClusterConfig(num_workers=world_size),
    )


def new_adapter() -> SemanticAdapter:
    torch.manual_seed(0)
    return SemanticAdapter([["one", 3], ["two", 7]], 5)


def sample(step: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + number)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 20, generator=generator)


def steps_of(engine: AdapterEngine, first: int, last: int) -> list[float]:
    """A little regression in place of the U-Net."""
    share = BATCH // engine.world_size
    losses = []
    for step in range(first, last):
        rows = [sample(step, engine.rank * share + row) for row in range(share)]
        inputs, targets = (torch.stack(column) for column in zip(*rows, strict=True))
        loss = (engine.project(inputs) - targets).square().mean()
        engine.backward(loss)
        losses += engine.mean([loss])
        engine.step()
    return losses


def train_and_resume(stage: int) -> dict[str, object]:
    """Whole training, and the same one broken in the middle; plain values for torch.save."""
    world_size = torch.distributed.get_world_size()
    config = config_of(stage, world_size)
    whole = AdapterEngine(new_adapter(), config, None)
    losses = steps_of(whole, 0, HALF)
    middle = whole.state()
    losses += steps_of(whole, HALF, STEPS)
    end = whole.state()
    torch.manual_seed(99)  # The resumed one starts from other weights.
    other = SemanticAdapter([["one", 3], ["two", 7]], 5)
    resumed = AdapterEngine(other, config, middle)
    resumed_losses = steps_of(resumed, HALF, STEPS)
    return {
        "losses": losses,
        "resumed_losses": resumed_losses,
        "middle": vars(middle),
        "end": vars(end),
        "resumed_end": vars(resumed.state()),
    }


def all_stages() -> dict[int, dict[str, object]]:
    return {stage: train_and_resume(stage) for stage in STAGES}


def resume_from(middle: dict) -> list[float]:
    config = config_of(1, torch.distributed.get_world_size())
    engine = AdapterEngine(new_adapter(), config, AdapterState(**middle))
    return steps_of(engine, HALF, STEPS)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict[int, dict]:
    return run_ranks(all_stages, 2, tmp_path_factory.mktemp("two"))


def plain_losses() -> list[float]:
    """The same in a plain PyTorch loop."""
    adapter = new_adapter()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        rows = [sample(step, row) for row in range(BATCH)]
        inputs, targets = (torch.stack(column) for column in zip(*rows, strict=True))
        loss = (adapter(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_as_a_plain_loop(two_ranks, stage) -> None:
    assert two_ranks[stage]["losses"] == pytest.approx(plain_losses(), abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resume_is_bitwise(two_ranks, stage) -> None:
    found = two_ranks[stage]
    assert found["resumed_losses"] == found["losses"][HALF:]
    end, resumed = found["end"], found["resumed_end"]
    assert end["steps"] == resumed["steps"] == STEPS
    for part in ("weights", "moments"):
        assert end[part].keys() == resumed[part].keys()
        for name, value in end[part].items():
            assert torch.equal(value, resumed[part][name]), name
    assert end["moments"]["exp_avg.proj.weight"].abs().sum() > 0


def test_another_number_of_ranks_continues(two_ranks, tmp_path) -> None:
    losses = run_ranks(resume_from, 1, tmp_path, two_ranks[3]["middle"])
    assert losses == pytest.approx(two_ranks[3]["losses"][HALF:], abs=1e-6)


def test_deepspeed_is_told_the_global_and_the_micro_batch() -> None:
    told = deepspeed_config(config_of(2, 4))
    assert told["train_batch_size"] == 4
    assert told["train_micro_batch_size_per_gpu"] == 1
    assert told["zero_optimization"]["stage"] == 2
