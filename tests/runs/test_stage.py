from pathlib import Path

import torch
from torch import Tensor, nn

from acontrol.runs.server import TrackingStore
from acontrol.runs.stage import StageContext, run_stage
from acontrol.runs.tracking import Tracker


def context(folder: Path, run_id: str | None = None) -> StageContext:
    folder.mkdir(exist_ok=True)
    tracker = Tracker.open(
        TrackingStore(f"sqlite:///{folder / 'm.db'}"), "e", "r", run_id, folder
    )
    return StageContext(
        folder, tracker, 3, torch.device("cpu"), save_every=4, samples_every=100
    )


class InterruptedError(Exception):
    pass


def train(settings: StageContext, stop_at: int | None = None) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Linear(5, 3)

    def loss(step: int) -> dict[str, Tensor]:
        if step == stop_at:
            raise InterruptedError
        x = torch.randn(8, 5, generator=settings.generator("x", step))
        # Dropout knows only torch's own generator.
        return {"loss": (module(nn.functional.dropout(x)) - x[:, :3]).square().mean()}

    run_stage("s", module, loss, settings, steps=10, learning_rate=0.1, ema_decay=0.9)
    return module


def test_a_stopped_stage_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = train(context(tmp_path / "a"))
    stopped = context(tmp_path / "b")
    try:
        train(stopped, stop_at=7)
    except InterruptedError:
        pass
    else:
        raise AssertionError("it was not stopped")
    again = train(context(tmp_path / "b", stopped.tracker.run_id))
    for parameter, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    first = context(tmp_path / "a")
    once = train(first)
    # A step would raise.
    twice = train(context(tmp_path / "a", first.tracker.run_id), stop_at=0)
    assert torch.equal(once.weight, twice.weight)


def test_the_average_is_what_stays(tmp_path: Path) -> None:
    settings = context(tmp_path / "a")
    averaged = train(settings).weight.detach().clone()
    from safetensors.torch import load_file

    state = load_file(settings.folder / "s.safetensors")
    assert torch.equal(averaged, state["average/weight"])
    assert not torch.equal(averaged, state["weight/weight"])
