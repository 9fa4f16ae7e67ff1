"""What improve says and refuses before a detector trains."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acontrol.data.builtin import write_dataset
from acontrol.improve import run
from acontrol.improve.settings import ImproveConfig
from acontrol.networks.locate import built_in_adapter

Settings = Callable[..., ImproveConfig]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_dataset(
        tmp_path / "data",
        num_good=4,
        num_good_test=1,
        num_defects=6,
        categories=("wood",),
        defects=("crack",),
    )

    def make(**changes: Any) -> ImproveConfig:
        own: dict[str, Any] = {"root": tmp_path / "data", "out": tmp_path / "out"}
        own |= {"model": str(built_in_adapter()), "folds": 2, "seeds": 1, "tile": 32}
        return ImproveConfig(**own | {"detector": "unet", "budget": "smallest"} | changes)

    return make


def test_a_unet_is_timed_without_the_package_of_the_features(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TimedError(Exception):
        pass

    def announce(jobs: object, out: Path, seconds_each: Callable[[], float], **_: Any) -> None:
        raise TimedError(seconds_each())

    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setattr(run, "announce", announce)
    with pytest.raises(TimedError) as caught:
        run.improve(settings())
    assert caught.value.args[0] > 0
