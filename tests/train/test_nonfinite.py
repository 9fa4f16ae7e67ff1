"""Non-finite losses and gradients, in real gloo ranks with real DeepSpeed."""

import pytest
import torch

from acontrol.config import RunConfig
from acontrol.method.sga import SemanticAdapter
from acontrol.train.engine import AdapterEngine
from acontrol.train.nonfinite import NonFiniteSteps
from tests.train.ranks import run_ranks
from tests.train.test_engine import batch_of, new_adapter

STEPS, BATCH = 5, 8
# Name: what is changed in the config.
OPTIM = {"accumulation": 2, "max_grad_norm": 0.5, "schedule": "cosine", "warmup_steps": 2}
SETTINGS: dict[str, dict] = {
    **{f"stage {stage}": {"zero": {"stage": stage}} for stage in range(4)},
    **{
        f"stage {stage}, bfloat16": {
            "zero": {"stage": stage},
            "runtime": {"precision": "bfloat16"},
        }
        for stage in (1, 2, 3)
    },
    **{
        f"stage {stage}, offloaded": {"zero": {"stage": stage, "offload_optimizer": True}}
        for stage in (1, 3)
    },
    "stage 2, averaged": {"zero": {"stage": 2}, "optim": {**OPTIM, "ema_decay": 0.5}},
}
KINDS = ("nan loss", "inf loss", "nan gradient", "inf gradient")
SHORT = [
    (f"stage {stage}", kind) for stage in range(4) for kind in ("inf loss", "nan gradient")
]
REST = [(name, kind) for name in SETTINGS for kind in KINDS if (name, kind) not in SHORT]
PLANTED = 2  # The step, from 0.


class Spoiled(torch.autograd.Function):
    """A number whose gradient is none."""

    @staticmethod
    def forward(ctx, value: torch.Tensor, gradient: float) -> torch.Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        spoiled = gradient.clone()
        spoiled[0, -1, -1] = ctx.gradient  # One element of K' and V'.
        return spoiled, None


def config_of(name: str, world_size: int) -> RunConfig:
    changed = SETTINGS[name]
    return RunConfig.model_validate(
        {
            "cluster": {"num_workers": world_size},
            **changed,
            "optim": {
                "batch_size": BATCH,
                "learning_rate": 1e-2,
                "steps": STEPS,
                **changed.get("optim", OPTIM),
            },
        }
    )


def one_step(engine: AdapterEngine, step: int, spoiled: str | None) -> tuple[float, str | None]:
    """A step of a small regression, with rank 1's first pass spoiled on request."""
    share, passes = engine.config.micro_batch_size, engine.config.optim.accumulation
    total, positions = torch.zeros(()), list[int]()
    for number in range(passes):
        begin = (number * engine.world_size + engine.rank) * share
        positions += range(begin, begin + share)
        inputs, targets = batch_of(step, range(begin, begin + share))
        projected = engine.project(inputs).float()
        here = spoiled if engine.rank == 1 and number == 0 else None
        if here is not None and "gradient" in here:
            projected = Spoiled.apply(projected, float(here.split()[0]))
        loss = (projected - targets).square().mean()
        if here == "inf loss":
            loss = loss + torch.inf  # Its gradient alone would be finite.
        elif here == "nan loss":
            loss = loss * torch.nan
        engine.backward(loss, last=number + 1 == passes)
        total += loss.detach() / passes
    mean, *flags = engine.mean([total, *engine.nonfinite])
    nonfinite = any(flags)
    steps = NonFiniteSteps(engine, engine.config)
    keys = [f"s{position}" for position in positions]
    cause = steps.on_this_rank(keys, positions) if nonfinite else ""
    updated = engine.step(skip=nonfinite)[1]
    assert updated == (spoiled is None) == (not nonfinite)
    return mean, steps.record(step, cause, nonfinite=nonfinite, updated=updated)


def trained(name: str, kind: str | None, planted: int = PLANTED) -> dict[str, object]:
    """Whole training with one step spoiled; without a kind that step is left out altogether.

    And the same resumed after that step.
    """
    config = config_of(name, torch.distributed.get_world_size())
    engine = AdapterEngine(new_adapter(), config, None)
    losses, words, after = [], None, None
    for step in range(STEPS):
        if step == planted and kind is None:
            engine._steps += 1
        else:
            loss, text = one_step(engine, step, kind if step == planted else None)
            losses.append(loss)
            words = words or text
        if step == planted:
            after = engine.state()
    assert after is not None
    result = {
        "later": losses[-(STEPS - planted - 1) :],
        "after": vars(after),
        "end": vars(engine.state()),
        "words": words,
    }
    if kind is None:
        return result
    resumed = AdapterEngine(SemanticAdapter([["one", 3], ["two", 7]], 5), config, after)
    return {
        **result,
        "again": [one_step(resumed, step, None)[0] for step in range(planted + 1, STEPS)],
        "resumed": vars(resumed.state()),
        "skipped": (engine.skipped_steps, resumed.skipped_steps),
    }


def all_of(cases: list[tuple[str, str | None]]) -> dict[str, dict[str, object]]:
    names = dict.fromkeys(name for name, _ in cases)
    all_cases = [*cases, *((name, None) for name in names)]
    return {f"{name}: {kind}": trained(name, kind) for name, kind in all_cases}


def first_steps() -> dict[str, dict[str, object]]:
    return {
        f"{stage}: {kind}": trained(f"stage {stage}", kind, planted=0)
        for stage in range(4)
        for kind in (None, "nan loss")
    }


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> dict[str, dict]:
    return run_ranks(all_of, 2, tmp_path_factory.mktemp("bad"), SHORT)


@pytest.fixture(scope="module")
def rest(tmp_path_factory) -> dict[str, dict]:
    return run_ranks(all_of, 2, tmp_path_factory.mktemp("bad"), REST)


def same(left: dict, right: dict) -> None:
    assert left["steps"] == right["steps"]
    for part in ("weights", "moments", "averages"):
        if left[part] is None:
            assert right[part] is None
            continue
        assert left[part].keys() == right[part].keys()
        for name, value in left[part].items():
            assert torch.equal(value, right[part][name]), (part, name)


def equals_leaving_the_step_out(spoiled: dict, left_out: dict) -> None:
    for when in ("after", "end"):
        same(spoiled[when], left_out[when])
    assert spoiled["later"] == left_out["later"]
    assert len(set(spoiled["later"])) == STEPS - PLANTED - 1
    assert spoiled["end"]["moments"]["step"] == STEPS - 1
    assert spoiled["end"]["moments"]["exp_avg.proj.weight"].abs().sum() > 0
    # And a resume after it is bitwise.
    same(spoiled["resumed"], spoiled["end"])
    assert spoiled["again"] == spoiled["later"]
    assert spoiled["skipped"] == (1, 1)


@pytest.mark.parametrize(("name", "kind"), SHORT)
def test_a_step_that_is_nonfinite_on_one_rank_is_skipped_by_all(short, name, kind) -> None:
    equals_leaving_the_step_out(short[f"{name}: {kind}"], short[f"{name}: None"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), REST)
def test_nor_with_any_other_setting(rest, name, kind) -> None:
    spoiled = rest[f"{name}: {kind}"]
    equals_leaving_the_step_out(spoiled, rest[f"{name}: None"])
    assert (spoiled["end"]["averages"] is not None) == ("averaged" in name)


def test_every_rank_gets_the_samples_to_blame(short) -> None:
    for kind in ("inf loss", "nan gradient"):
        assert short[f"stage 1: {kind}"]["words"] == (
            f"step {PLANTED} skipped by all ranks: the {kind.split()[1]} of rank 1 is "
            "non-finite (samples s2, s3, s6, s7; positions [2, 3, 6, 7]); seed 0"
        )


@pytest.mark.slow
def test_the_very_first_step_may_be_nonfinite(tmp_path) -> None:
    results = run_ranks(first_steps, 2, tmp_path)
    for stage in range(4):
        spoiled, left_out = (results[f"{stage}: {kind}"] for kind in ("nan loss", None))
        assert not spoiled["after"]["moments"]["exp_avg.proj.weight"].any()
        for when in ("after", "end"):
            same(spoiled[when], left_out[when])
        same(spoiled["resumed"], spoiled["end"])
