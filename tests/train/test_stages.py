"""Every ZeRO stage with the real model over 20 steps: the same losses, to 1e-5."""

import pytest

from tests.train.ranks import run_ranks
from tests.train.test_loop import Notes, setting, shards  # noqa: F401

pytestmark = pytest.mark.slow
CASES = [(stage, passes) for passes in (1, 2) for stage in range(4)]


def losses_of(shards: str, cases: list[tuple[int, int]]) -> list[list[float]]:  # noqa: F811
    import torch.distributed as dist

    from acontrol.train.engine import AdapterEngine
    from acontrol.train.loop import train

    losses = []
    for stage, passes in cases:
        model, stream, _ = setting(
            shards,
            zero={"stage": stage},
            optim={
                "steps": 20,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "accumulation": passes,
                "max_grad_norm": 0.5,
                "schedule": "cosine",
                "warmup_steps": 3,
            },
            cluster={"num_workers": dist.get_world_size()},
            validation={"every": 0},
        )
        engine = AdapterEngine(model.adapter, model.config, None)
        size = model.config.micro_batch_size
        batches = stream.batches(0, size, engine.rank, engine.world_size, 20 * passes)
        notes = Notes()
        train(model, batches, engine, model.config, notes)
        losses.append([report.loss for report in notes.reports])
    return losses


def test_all_stages_and_one_worker_have_the_same_losses(shards, tmp_path) -> None:  # noqa: F811
    two = run_ranks(losses_of, 2, tmp_path, shards, CASES)
    (alone,) = run_ranks(losses_of, 1, tmp_path, shards, [(1, 1)])
    assert len(alone) == 20
    assert alone[0] != pytest.approx(alone[-1], abs=1e-3)
    worst = 0.0
    for losses in two:
        assert losses == pytest.approx(alone, abs=1e-5)
        worst = max(worst, *(abs(a - b) for a, b in zip(losses, alone, strict=True)))
    print(f"worst difference of {len(CASES)} settings over 20 steps: {worst:.1e}")
