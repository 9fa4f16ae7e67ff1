"""The loop and the validation, in one gloo rank with the real tiny model."""

import math
import re
import time
from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
import torch

from acontrol.config import DataConfig, OptimConfig, RunConfig, ValidationConfig
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.data.shards import write_shards
from acontrol.data.stream import TrainingStream, held_out
from acontrol.method.condition_dropout import ConditionedSteps
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import load_base
from acontrol.train.engine import AdapterEngine
from acontrol.train.loop import NO_DROPOUT, StepReport, Validation, train, validate
from acontrol.train.nonfinite import NonFiniteLossError
from tests.train.ranks import run_ranks


@pytest.fixture(scope="module")
def shards(built_in_data, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("loop") / "s"
    write_shards(open_folder(built_in_data).labelled("all"), out, split="all")
    return str(out)


class Notes:
    """Records all callbacks."""

    def __init__(self, stop_at: int = 0, checkpoint_at: int = 0):
        self.reports: list[StepReport] = []
        self.events: list[tuple[str, int]] = []
        self.validations: list[float] = []
        self.stop_at, self.checkpoint_at = stop_at, checkpoint_at

    def on_step(self, report: StepReport) -> None:
        self.reports.append(report)

    def on_validation(self, step: int, result: Validation) -> None:
        self.events.append(("validation", step))
        self.validations.append(result.loss)

    def on_samples(self, step: int) -> None:
        self.events.append(("samples", step))

    def on_checkpoint(self, report: StepReport) -> None:
        self.events.append(("checkpoint", report.step))

    def should_stop(self) -> bool:
        return len(self.reports) + 1 == self.stop_at

    def wants_checkpoint(self, step: int) -> bool:
        return step == self.checkpoint_at


def setting(shards: str, **changes) -> tuple[AnomalyControl, TrainingStream, TrainingStream]:
    config = RunConfig.model_validate(
        {
            "data": DataConfig(shards=shards, resolution=64),
            "optim": OptimConfig(steps=4, batch_size=4, learning_rate=1e-2),
            "validation": ValidationConfig(every=2, share=0.3),
            "samples": {"every": 3},
            "checkpoint": {"every": 2},
            **changes,
        }
    )
    base = load_base(config.base)
    adapter = SemanticAdapter.from_unet(base.unet, 64)
    model = AnomalyControl(base, adapter, config)
    reader = ShardReader(shards)
    held = held_out(reader.index, 0.3)
    size = model.encoder.semantics.image_px
    streams = [
        TrainingStream(reader, config.data, seed=0, reference_px=size, used=used)
        for used in (~held, held)
    ]
    return model, streams[0], streams[1]


def run(shards: str, **changes) -> dict[str, object]:
    stop_at, checkpoint_at = changes.pop("stop_at", 0), changes.pop("checkpoint_at", 0)
    spoil = changes.pop("spoil", ())  # Steps with NaN images.
    pause = changes.pop("pause", 0.0)
    model, stream, held = setting(shards, **changes)
    engine = AdapterEngine(model.adapter, model.config, None)
    optim = model.config.optim
    first = validate(model, held, engine).loss
    batches = stream.batches(0, model.config.micro_batch_size, 0, 1, 4 * optim.accumulation)
    batches = (batch for batch in batches if time.sleep(pause) is None)
    batches = (
        replace(batch, image=batch.image * math.nan) if step in spoil else batch
        for step, batch in enumerate(batches, 1)
    )
    notes = Notes(stop_at, checkpoint_at)
    before = engine.weights()["proj.weight"]
    error = ""
    try:
        train(model, batches, engine, model.config, notes, validation=held)
    except NonFiniteLossError as raised:
        error = str(raised)
    after = engine.weights()["proj.weight"]
    rows = []
    state = engine.state()
    exported = (state.averages or state.weights)["proj.weight"]
    with torch.no_grad():
        for place in range(len(held)):
            (batch,) = held.batches(place, 1, 0, 1, 1)
            project = partial(torch.nn.functional.linear, weight=exported)
            losses = model(batch, project, seed=held.seed, dropout=NO_DROPOUT)
            rows.append(losses.loss.item())
    return {
        "events": notes.events,
        "losses": [report.loss for report in notes.reports],
        "skipped": [report.skipped for report in notes.reports],
        "rates": [report.learning_rate for report in notes.reports],
        "shares": [dict(report.shares) for report in notes.reports],
        "validations": [first, *notes.validations],
        "by_hand": sum(rows) / max(1, len(rows)),
        "changed": not torch.equal(before, after),
        "error": error,
    }


def many(shards: str) -> dict[str, dict[str, object]]:
    optim = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2}
    return {
        "plain": run(shards),
        "two passes": run(shards, optim={**optim, "accumulation": 2}),
        "bfloat16": run(shards, runtime={"precision": "bfloat16"}),
        "averaged": run(shards, optim={**optim, "ema_decay": 0.9}),
        "slow data": run(shards, pause=0.3, optim={**optim, "accumulation": 2}),
        "stopped": run(shards, stop_at=3),
        "warned": run(shards, checkpoint_at=3),
        "spoiled": run(shards, spoil=[1], optim={**optim, "max_skipped": 0}),
        "skipping": run(shards, spoil=[2]),
        "giving up": run(shards, spoil=[2, 3, 4], optim={**optim, "max_skipped": 1}),
    }


def elided(shards: str, world_size: int, start: int = 0) -> dict[str, object]:
    """Steps 1 to 4 of 4 samples, or from ``start`` on, without those whose C' is dropped."""
    model, stream, _ = setting(
        shards,
        cluster={"num_workers": world_size},
        runtime={"skip_dropped": True},
        dropout={"text": 0.0, "semantic": 0.3, "both": 0.3},
        seed=3,
    )
    config = model.config
    engine = AdapterEngine(model.adapter, config, None)
    steps = ConditionedSteps.of_run(3, config.dropout, 4, 4)
    batches = list(
        stream.batches(
            4 * start, 4 // world_size, engine.rank, world_size, 4 - start, steps.positions
        )
    )
    positions = [batch.positions for batch in batches]
    everyone: list[list[list[int]]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(everyone, positions)
    notes, sent = Notes(), []
    backward = engine.backward
    engine.backward = lambda loss, last: (sent.append(loss.item()), backward(loss, last=last))
    train(model, iter(batches), engine, config, notes, start=start, shares=steps.shares)
    return {
        "weights": engine.weights()["proj.weight"],
        "losses": [report.loss for report in notes.reports],
        "weighted": sent,
        "shares": steps.shares[start:].tolist(),
        "positions": [
            list(chain.from_iterable(parts)) for parts in zip(*everyone, strict=True)
        ],
        "expected": steps.positions.reshape(4, 4)[start:].tolist(),
    }


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> dict[str, dict]:
    return run_ranks(many, 1, tmp_path_factory.mktemp("loop"), shards)


def test_everything_is_told_when_it_is_due(runs) -> None:
    assert runs["plain"]["events"] == [
        ("validation", 2),
        ("checkpoint", 2),
        ("samples", 3),
        ("validation", 4),
        ("checkpoint", 4),
        ("samples", 4),
    ]


def test_a_wish_to_stop_writes_a_checkpoint_and_ends(runs) -> None:
    assert runs["stopped"]["events"][-1] == ("checkpoint", 3)
    assert runs["stopped"]["losses"] == runs["plain"]["losses"][:3]


def test_a_warning_writes_a_checkpoint_and_goes_on(runs) -> None:
    events = runs["warned"]["events"]
    assert [step for name, step in events if name == "checkpoint"] == [2, 3, 4]
    assert runs["warned"]["losses"] == runs["plain"]["losses"]


def test_two_passes_are_one_batch(runs) -> None:
    assert runs["two passes"]["losses"] == pytest.approx(runs["plain"]["losses"], abs=1e-5)


def test_the_shares_of_a_step_add_up_and_show_slow_data(runs) -> None:
    for name in ("two passes", "slow data"):
        for shares in runs[name]["shares"]:
            assert shares.keys() == {"data", "forward", "backward", "optimizer"}
            assert all(0 < share < 1 for share in shares.values())
            assert sum(shares.values()) == pytest.approx(1)
    plain, slow = (runs[name]["shares"][-1] for name in ("two passes", "slow data"))
    assert slow["data"] > plain["data"] + 0.1
    assert slow["forward"] < plain["forward"]


def test_bfloat16_trains_close_to_float32(runs) -> None:
    # 8 bits of mantissa through the whole U-Net: about 1 %.
    assert runs["bfloat16"]["losses"] == pytest.approx(runs["plain"]["losses"], rel=1e-2)
    assert runs["bfloat16"]["changed"]


@pytest.mark.parametrize("name", ["plain", "averaged"])
def test_validation_is_the_mean_over_the_held_out_samples(runs, name) -> None:
    """Of the weights that are exported: the averages, if the run keeps them."""
    assert runs[name]["losses"] == runs["plain"]["losses"]
    assert runs[name]["validations"][-1] == pytest.approx(runs[name]["by_hand"], abs=1e-5)


def test_validation_moves_with_the_weights_alone(runs) -> None:
    first, middle, last = runs["plain"]["validations"]
    assert len({first, middle, last}) == 3
    assert runs["two passes"]["validations"][0] == pytest.approx(first, abs=1e-5)


def test_a_nonfinite_loss_names_its_samples_and_changes_nothing(runs) -> None:
    result = runs["spoiled"]
    assert "step 1 skipped by all ranks: the loss of rank 0 is non-finite" in result["error"]
    assert "wood/" in result["error"] or "button/" in result["error"]
    assert not result["changed"]


def test_a_skipped_step_is_told_and_its_checkpoint_waits(runs) -> None:
    result = runs["skipping"]
    assert [words is None for words in result["skipped"]] == [True, False, True, True]
    assert re.fullmatch(
        r"step 2 skipped by all ranks: the loss of rank 0 is non-finite \(samples \S+/\S+.*; "
        r"positions \[4, 5, 6, 7\]\); seed 0",
        result["skipped"][1],
    )
    assert math.isnan(result["losses"][1])
    # Draws depend on a step's position alone, so the other steps are unchanged.
    assert result["losses"][0] == runs["plain"]["losses"][0]
    assert result["losses"][2] == pytest.approx(runs["plain"]["losses"][2], rel=0.1)
    assert result["losses"][2] != runs["plain"]["losses"][2]
    checkpoints = [step for name, step in result["events"] if name == "checkpoint"]
    assert checkpoints == [3, 4]


def test_too_many_in_a_row_end_the_run_with_a_checkpoint_from_before(runs) -> None:
    result = runs["giving up"]
    assert len(result["losses"]) == 3
    assert "2 steps in a row were skipped, optim.max_skipped is 1" in result["error"]
    assert "step 3 skipped" in result["error"]
    assert not [step for name, step in result["events"] if name == "checkpoint"]
    assert result["validations"][-1] == pytest.approx(result["by_hand"], abs=1e-5)


@pytest.mark.slow  # Three processes' imports.
def test_elided_steps_are_the_same_for_any_number_of_ranks(shards, tmp_path) -> None:
    one = run_ranks(elided, 1, tmp_path, shards, 1)
    two = run_ranks(elided, 2, tmp_path, shards, 2)
    resumed = run_ranks(elided, 1, tmp_path, shards, 1, 2)
    assert one["positions"] == two["positions"] == one["expected"]
    assert resumed["positions"] == one["expected"][2:]
    assert one["positions"][0] != [0, 1, 2, 3]
    by_share = [loss * share for loss, share in zip(one["losses"], one["shares"], strict=True)]
    assert one["weighted"] == pytest.approx(by_share, rel=1e-6)
    # Float32's rounding in another batch composition, through AdamW.
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    change = (two["weights"] - one["weights"]).norm() / one["weights"].norm()
    assert change < 1e-3
