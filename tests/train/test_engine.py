"""The engine in real gloo ranks with real DeepSpeed, every setting."""

import pytest
import torch

from acontrol.config import OptimConfig, RunConfig
from acontrol.method.sga import SemanticAdapter
from acontrol.train.checkpoint import AdapterState
from acontrol.train.engine import AdapterEngine
from tests.train.ranks import run_ranks

STEPS, HALF, BATCH = 6, 3, 8
LINEAR = torch.nn.functional.linear
# Name: what is changed in the config.
SETTINGS: dict[str, dict] = {
    **{f"stage {stage}": {"zero": {"stage": stage}} for stage in range(4)},
    **{
        f"stage {stage}, two passes, clipped, cosine": {
            "zero": {"stage": stage},
            "optim": {
                "accumulation": 2,
                "max_grad_norm": 0.1,
                "schedule": "cosine",
                "warmup_steps": 2,
            },
        }
        for stage in range(4)
    },
    **{
        f"stage {stage}, bfloat16": {
            "zero": {"stage": stage},
            "runtime": {"precision": "bfloat16"},
            "optim": {"accumulation": 2},
        }
        for stage in range(1, 4)
    },
    "stage 2, averaged": {"zero": {"stage": 2}, "optim": {"ema_decay": 0.3}},
    "stage 1, offloaded": {"zero": {"stage": 1, "offload_optimizer": True}},
    "stage 3, offloaded": {"zero": {"stage": 3, "offload_optimizer": True}},
}


# By default a setting of each sort; the others in make test-all.
USUAL = (
    *(f"stage {stage}" for stage in range(4)),
    "stage 2, two passes, clipped, cosine",
    "stage 3, bfloat16",
    "stage 2, averaged",
)
EACH = [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS
]


def config_of(name: str, world_size: int) -> RunConfig:
    changed = SETTINGS[name]
    optim = {"batch_size": BATCH, "learning_rate": 1e-2, "steps": STEPS}
    return RunConfig.model_validate(
        {
            "cluster": {"num_workers": world_size},
            **changed,
            "optim": {**optim, **changed.get("optim", {})},
        }
    )


def new_adapter() -> SemanticAdapter:
    torch.manual_seed(0)
    return SemanticAdapter([["one", 3], ["two", 7]], 5)


def sample(step: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + number)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 20, generator=generator)


def batch_of(step: int, numbers: range) -> tuple[torch.Tensor, ...]:
    rows = [sample(step, number) for number in numbers]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def steps_of(engine: AdapterEngine, first: int, last: int) -> list[float]:
    """A little regression in place of the U-Net."""
    share, passes = engine.config.micro_batch_size, engine.config.optim.accumulation
    losses = []
    for step in range(first, last):
        total = torch.zeros(())
        for number in range(passes):
            begin = (number * engine.world_size + engine.rank) * share
            inputs, targets = batch_of(step, range(begin, begin + share))
            loss = (engine.project(inputs).float() - targets).square().mean()
            engine.backward(loss, last=number + 1 == passes)
            total += loss.detach() / passes
        losses += engine.mean([total])
        engine.step()
    return losses


def train_and_resume(name: str) -> dict[str, object]:
    """Whole training, and the same one broken in the middle; plain values for torch.save."""
    config = config_of(name, torch.distributed.get_world_size())
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
        "linear_is_torchs": torch.nn.functional.linear is LINEAR,
    }


def train_all(names: list[str]) -> dict[str, dict[str, object]]:
    return {name: train_and_resume(name) for name in names}


def resume_from(middle: dict) -> list[float]:
    config = config_of("stage 1", torch.distributed.get_world_size())
    engine = AdapterEngine(new_adapter(), config, AdapterState(**middle))
    return steps_of(engine, HALF, STEPS)


@pytest.fixture(scope="module")
def two_ranks(request, tmp_path_factory) -> dict[str, dict]:
    """All settings of the tests that were chosen, in one pair of processes."""
    chosen = {
        item.callspec.params["name"]
        for item in request.session.items
        if "name" in getattr(getattr(item, "callspec", None), "params", {})
        and item.function.__module__ == __name__
    }
    return run_ranks(train_all, 2, tmp_path_factory.mktemp("two"), sorted(chosen | {*USUAL}))


def plain_losses(name: str) -> list[float]:
    """The same in a plain PyTorch loop, with torch's own clipping and schedule."""
    return plain_training(name)[0]


def plain_weights(name: str) -> list[torch.Tensor]:
    """And the weights after each step."""
    return plain_training(name)[1]


def plain_training(name: str) -> tuple[list[float], list[torch.Tensor]]:
    optim = config_of(name, 1).optim
    adapter = new_adapter()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=optim.learning_rate)
    schedule = torch_schedule(optimizer, optim)
    losses, weights = [], []
    for step in range(STEPS):
        inputs, targets = batch_of(step, range(BATCH))
        loss = (adapter(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if optim.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), optim.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        weights.append(adapter.proj.weight.detach().clone())
    return losses, weights


def torch_schedule(
    optimizer: torch.optim.Optimizer, optim: OptimConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """Torch's own line up to the full rate, then its half cosine down."""
    schedules = torch.optim.lr_scheduler
    if optim.schedule == "constant":
        return schedules.ConstantLR(optimizer, factor=1)
    warmup = optim.warmup_steps
    up = schedules.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    down = schedules.CosineAnnealingLR(optimizer, T_max=optim.steps - warmup)
    return schedules.SequentialLR(optimizer, [up, down], milestones=[warmup])


@pytest.mark.parametrize("name", EACH)
def test_every_setting_trains_as_a_plain_loop(two_ranks, name) -> None:
    # bfloat16 has 8 bits of mantissa: a loss near 1 is good to about 1/256.
    tolerance = 4e-3 if "bfloat16" in name else 1e-5
    assert two_ranks[name]["losses"] == pytest.approx(plain_losses(name), abs=tolerance)


@pytest.mark.parametrize("warmup", [2, 5])
def test_the_rate_is_torchs_at_every_step(warmup) -> None:
    optim = OptimConfig(steps=17, warmup_steps=warmup, schedule="cosine", learning_rate=0.3)
    optimizer = torch.optim.AdamW(new_adapter().parameters(), lr=optim.learning_rate)
    schedule = torch_schedule(optimizer, optim)
    for step in range(1, optim.steps + 1):
        assert optim.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        schedule.step()
    assert 0 < optim.rate(optim.steps) < 0.02 * optim.learning_rate
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_clipping_and_schedule_matter() -> None:
    names = ("stage 0", "stage 0, two passes, clipped, cosine")
    plain, changed = (plain_losses(name) for name in names)
    assert plain[0] == changed[0]
    assert abs(plain[-1] - changed[-1]) > 1e-3


@pytest.mark.parametrize("name", EACH)
def test_a_resume_is_bitwise(two_ranks, name) -> None:
    result = two_ranks[name]
    assert result["resumed_losses"] == result["losses"][HALF:]
    end, resumed = result["end"], result["resumed_end"]
    assert end["steps"] == resumed["steps"] == STEPS
    for part in ("weights", "moments"):
        assert end[part].keys() == resumed[part].keys()
        for parameter, value in end[part].items():
            assert value.dtype == torch.float32
            assert torch.equal(value, resumed[part][parameter]), parameter
    assert end["moments"]["exp_avg.proj.weight"].abs().sum() > 0


def test_the_average_follows_the_weights_and_comes_back(two_ranks) -> None:
    result = two_ranks["stage 2, averaged"]
    assert two_ranks["stage 2"]["end"]["averages"] is None
    average = new_adapter().proj.weight.detach()
    weights = plain_weights("stage 2")
    for updates, weight in enumerate(weights):
        decay = min(0.3, (1 + updates) / (10 + updates))  # The first three steps' is less.
        average = decay * average + (1 - decay) * weight
    for end in ("end", "resumed_end"):
        kept = result[end]["averages"]["proj.weight"]
        torch.testing.assert_close(kept, average, atol=1e-5, rtol=0)
        assert not torch.allclose(kept, result[end]["weights"]["proj.weight"], atol=1e-4)
    resumed = result["resumed_end"]["averages"]["proj.weight"]
    assert torch.equal(resumed, result["end"]["averages"]["proj.weight"])


def test_the_whole_weights_of_all_stages_agree(two_ranks) -> None:
    ones = [two_ranks[f"stage {stage}"]["end"]["weights"]["proj.weight"] for stage in range(4)]
    for value in ones[1:]:
        torch.testing.assert_close(value, ones[0], atol=1e-6, rtol=0)


def test_another_number_of_ranks_continues(two_ranks, tmp_path) -> None:
    losses = run_ranks(resume_from, 1, tmp_path, two_ranks["stage 3"]["middle"])
    assert losses == pytest.approx(two_ranks["stage 3"]["losses"][HALF:], abs=1e-6)


@pytest.mark.parametrize("stage", range(4))
def test_the_other_networks_of_the_process_are_left_alone(two_ranks, stage) -> None:
    assert two_ranks[f"stage {stage}"]["linear_is_torchs"]
