"""Features computed by real Ray tasks, and a run that uses them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from acontrol.data.features import NAMES, FeatureFolder, feature_folder
from acontrol.data.reader import ShardReader
from acontrol.data.stream import Batch, TrainingStream, collate
from acontrol.errors import UserError
from acontrol.method.encoder import FrozenEncoder
from acontrol.networks.load import BaseModels
from acontrol.networks.locate import digest as base_digest
from acontrol.runs.record import Launch
from acontrol.train import driver
from launch import precompute
from launch.train import read_config
from tests.launch import commands
from tests.launch.runs import losses_of, options, precompute_options

pytestmark = pytest.mark.xdist_group("whole")


def opened(shards: Path, features: Path) -> tuple[FeatureFolder, TrainingStream]:
    config = read_config([str(one) for one in precompute_options(shards, features)])
    reader = ShardReader(str(shards))
    folder = feature_folder(config, reader, base_digest(config.base))
    return folder, TrainingStream(reader, config.data, seed=0, reference_px=64)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As Ray's tasks have it: sums in another order round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_they_are_what_the_networks_give(
    shards: Path, features: Path, tiny_base: BaseModels
) -> None:
    folder, stream = opened(shards, features)
    assert folder.why_not() is None
    config = read_config([str(one) for one in precompute_options(shards, features)])
    encoder = FrozenEncoder(tiny_base, config.csm, config.asea)
    size = config.micro_batch_size
    numbers = range(3 * size, 4 * size)  # A batch as the tasks had it, and a part of it.
    for chosen, exact in ((numbers, True), (numbers[1:2], False)):
        batch = collate([stream.paired(n, n, n) for n in chosen], Batch)
        found = encoder(batch)
        for row, number in enumerate(chosen):
            kept = folder.read(number)
            for name in NAMES:
                now = getattr(found, name)[row]
                if exact:
                    assert torch.equal(kept[name], now), name
                torch.testing.assert_close(kept[name], now, rtol=0, atol=1e-5)


def test_training_on_them_gives_the_same_losses(
    whole: Path, in_one_process: dict[str, list[float]]
) -> None:
    online = [loss for _, loss in losses_of(whole)]
    assert in_one_process["features"] == pytest.approx(online, abs=1e-5)


@pytest.mark.slow  # A launch; the readers and the losses are tested above.
def test_workers_train_on_them(
    shards: Path, features: Path, whole: Path, ray_address: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = (*options(shards, run), "--data.features", features)
    done = commands.run("launch.train", *args, cluster=ray_address)
    assert done.returncode == 0, done.stderr
    assert "Features: precomputed" in done.stdout
    for (step, loss), (same, online) in zip(losses_of(run), losses_of(whole), strict=True):
        assert step == same
        assert loss == pytest.approx(online, abs=1e-5)


def test_a_second_call_has_nothing_to_compute(
    shards: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = features.iterdir()
    before = {file.name: os.stat(file).st_mtime_ns for file in path.glob("samples-*")}
    precompute.run([str(one) for one in precompute_options(shards, features)])
    after = {file.name: os.stat(file).st_mtime_ns for file in path.glob("samples-*")}
    assert before == after
    assert str(path) in capsys.readouterr().out


def test_other_settings_are_computed_online(
    shards: Path,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(driver, "joined_cluster", lambda cluster: contextlib.nullcontext())
    monkeypatch.setattr(driver, "fit", lambda launch, *rest: launches.append(launch))
    args = [*map(str, precompute_options(shards, features)), "--output", str(tmp_path / "run")]
    driver.run_training(read_config([*args, "--asea.steps", "1"]))
    assert not launches[0].features
    assert "online" in (printed := capsys.readouterr().out)
    assert "asea.steps: 3 -> 1" in printed


def test_it_needs_to_know_where(shards: Path) -> None:
    with pytest.raises(UserError, match=r"--data\.features DIR"):
        precompute.run(["tiny", "--data.shards", str(shards)])
