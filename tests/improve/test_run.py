"""What improve says and refuses before a detector trains."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acontrol.config import BaseConfig, TrainedOn
from acontrol.data.builtin import write_dataset
from acontrol.errors import UserError
from acontrol.improve import run
from acontrol.improve.settings import ImproveConfig
from acontrol.networks import locate
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


def test_an_adapter_that_saw_the_test_images_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(built_in_adapter(), tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["card"]["trained_on"] = [{"split": "all"}]
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^--model .*model comes from every image"):
        run.improve(settings(model=str(model)))
    assert not (tmp_path / "out").exists()


def test_an_adapter_whose_base_saw_the_test_images_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained_on(base: BaseConfig) -> tuple[TrainedOn, ...]:
        assert base.path == "tiny"
        return (TrainedOn(categories=("wood",), split="test"),)

    monkeypatch.setattr(locate, "trained_on", trained_on)
    with pytest.raises(UserError, match="comes from the test images of wood"):
        run.improve(settings())
