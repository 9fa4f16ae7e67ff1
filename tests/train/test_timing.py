"""The timer, with a clock of our own and with events that tell when they are read too early."""

import pytest
import torch

from acontrol.train.loop import StepTimer


def step_of(timer: StepTimer) -> None:
    timer.begin()
    for phase in ("data", "forward", "data", "forward", "optimizer"):
        timer.ends(phase)


def test_a_phase_is_summed_over_its_passes() -> None:
    times = iter([10.0, 11.0, 14.0, 14.5, 18.0, 20.0])
    timer = StepTimer(torch.device("cpu"), lambda: next(times))
    step_of(timer)
    assert timer.shares() == {"data": 0.15, "forward": 0.65, "optimizer": 0.2}


def test_before_any_time_has_passed_there_are_no_shares() -> None:
    timer = StepTimer(torch.device("cpu"), lambda: 1.0)
    step_of(timer)
    assert timer.shares() == {}


class Queue:
    """A device that lags behind its host: events are done once the host has read from it."""

    def __init__(self):
        self.events: list[Event] = []

    def read_by_host(self) -> None:
        for event in self.events:
            event.done = True


class Event:
    """Stands in for torch.cuda.Event; only counts what came before it."""

    queue: Queue

    def __init__(self, enable_timing: bool):
        assert enable_timing
        self.done = False

    def record(self) -> None:
        self.place = len(self.queue.events)
        self.queue.events.append(self)

    def elapsed_time(self, other: "Event") -> float:
        assert self.done and other.done, "read before the device came there"
        return float(other.place - self.place)


def test_on_cuda_only_what_is_done_is_read(monkeypatch) -> None:
    Event.queue = Queue()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = StepTimer(torch.device("cuda"))
    timer.begin()
    timer.ends("data")
    Event.queue.read_by_host()  # The loop's one read lies before the optimizer.
    timer.ends("optimizer")
    assert timer.shares() == {}, "the first step has none before it"
    step_of(timer)
    for event in Event.queue.events[:-1]:
        event.done = True
    assert timer.shares() == {"data": 0.5, "optimizer": 0.5}


@pytest.mark.gpu
def test_on_a_real_card_the_larger_product_takes_the_larger_share() -> None:
    timer = StepTimer(torch.device("cuda"))
    small, large = (torch.randn(side, side, device="cuda") for side in (128, 4096))
    for _ in range(3):
        timer.begin()
        small @ small
        timer.ends("small")
        large @ large
        timer.ends("large")
        small.sum().item()
        timer.ends("read")
        shares = timer.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["large"] > shares["small"]
