"""What improve says and refuses before a detector trains."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image, ImageOps

from acontrol.config import BaseConfig, TrainedOn
from acontrol.data.builtin import write_dataset
from acontrol.errors import UserError
from acontrol.improve import run
from acontrol.improve.settings import ImproveConfig
from acontrol.networks import locate
from acontrol.networks.locate import built_in_adapter

Settings = Callable[..., ImproveConfig]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Make settings on small data; a detector that starts to train fails the test."""
    monkeypatch.setattr(run, "results_in", lambda *_: pytest.fail("was not refused"))
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


def mirror(file: Path) -> None:
    with Image.open(file) as image:
        mirrored = ImageOps.mirror(image)
    mirrored.save(file)


@pytest.mark.parametrize("changed", ["train/good/001", "ground_truth/crack/000_mask"])
def test_changed_data_is_not_continued(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    def results_in(*_: object) -> contextlib.AbstractContextManager[Mock]:
        return contextlib.nullcontext(Mock())

    monkeypatch.setattr(run, "results_in", results_in)
    monkeypatch.setattr(run, "log", Mock())
    monkeypatch.setattr(run, "_drawn", lambda *_: False)
    config = settings(predictions=tmp_path / "maps")
    run.improve(config)
    file = tmp_path / "data" / "wood" / "test" / "crack" / "005.png"
    mirror(file)
    run.improve(config)  # It is a test image.
    file = tmp_path / "data" / "wood" / f"{changed}.png"
    mirror(file)
    with pytest.raises(UserError, match=r"training_data_sha256: \w+\.\.\. -> \w+\.\.\.\)"):
        run.improve(config)
