"""Options read as tyro reads them, and what it cannot say: every mistake in one line."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import tyro
from pydantic import BaseModel, Field

from acontrol.config import RunConfig, Settings
from acontrol.data.settings import ShardConfig
from acontrol.errors import UserError
from acontrol.evaluation.settings import (
    AblationConfig,
    ClassificationConfig,
    LocalizationConfig,
    QualityConfig,
)
from acontrol.generation.settings import GenerationConfig
from acontrol.presets import preset
from acontrol.pretrain.settings import PretrainConfig
from launch import demo
from launch.demo import DemoCommand
from launch.export import ExportCommand
from launch.masks import MasksCommand
from launch.options import marked, parse
from launch.promote import PromoteCommand
from launch.pull import PullCommand
from launch.register import RegisterCommand
from launch.train import TrainCommand
from tune.plan import SweepConfig

TINY = preset("tiny")
# How the documents, the benchmarks and the tests start each command, and every form besides.
INVOCATIONS: dict[type[BaseModel], tuple[Mapping[str, str], list[str]]] = {
    RunConfig: (
        {},
        [
            "",
            "--data.shards shards --output runs/tile --cluster.num-workers 2",
            "--data.shards=s3://bucket/shards --output=s3://bucket/run",
            "--optim.batch_size 4 --optim.batch-size=8 --optim.batch-size 16",
            "--optim.steps 9 --optim.steps 1_000 --optim.learning-rate 2e-3",
            "--csm.no-text --runtime.skip-dropped",
            "--csm.no_text --csm.text --runtime.no-skip-dropped",
            "--cluster.use-gpu True",
            "--cluster.use-gpu False",
            "--cluster.use-gpu None --init None --optim.max-grad-norm None",
            "--cluster.resources memory 8e9 fast_disk 1 --zero.stage 2",
            "--cluster.resources a 1 --cluster.resources b 2 c .5",
            "--cluster.resources --cluster.max-failures -1",
            "--cluster.max-failures=-1 --output= --init=--seed",
            "--runtime.precision bfloat16 --asea.bound .5 --seed +3",
            "--profile 2 --tracking.system-metrics --base.path base --data.features f",
        ],
    ),
    TrainCommand: ({}, ["", "--register tiles --output r", "--dry-run --register=tiles"]),
    SweepConfig: (
        {},
        [
            "--dry-run --no-dry-run",
            "--data.shards shards --output sweeps/a",
            "--no-default-space --space sga.scale=0.5:1.5 asea.steps=1,3 --trials 2",
            "--space=a=1 b=2 --objective guided_agreement --retry-failed",
            "--space a=1 --space b=2 --objective None --trials None",
            "--space --search grid --scheduler none --reduction 2 --max-concurrent 1",
        ],
    ),
    AblationConfig: (
        {},
        [
            "--real ROOT --data.shards SHARDS --out A",
            "--rows nothing,csm,t3 --budget smallest --seeds 1 --optim.steps 7 --dry-run",
            "--features vlm inception --weights w --count 2 --no-dry-run",
        ],
    ),
    QualityConfig: (
        {},
        [
            "--real ROOT --synthetic ours=DIR other=DIR --out Q",
            "--out Q --synthetic d --real ROOT --category a b --features inception lpips-vgg",
            "--real ROOT --synthetic --out Q --model m --tracking.uri u",
        ],
    ),
    LocalizationConfig: (
        {},
        [
            "--real ROOT --synthetic ours=DIR --out L",
            "--real r --sources real,cutpaste --budget small --protocol strict --seeds 2 "
            "--num-workers 2 --new-pieces",
        ],
    ),
    ClassificationConfig: ({}, ["--real R --network net --pairs 3 --dry-run --category c"]),
    GenerationConfig: (
        {},
        [
            "--model runs/tile --data DATA --defect crack --count 100 --out new",
            "--model models:/a@b --data D --out O --masks learned --masks-path MASKS",
            "--model m --data d --out o --replay old --batch 0 --num-workers 2 --no-composite",
            "--model m --data d --out o --requests r --scale 0 --gate off --refine-mask",
        ],
    ),
    PretrainConfig: (
        {},
        [
            "--output base --sizes.vae-channels 8 16 32 --no-bfloat16 --vae.steps 2",
            "--output base --hold-out crack wood/hole",
            "--output base --hold-out None",
            "--output base --hold-out",
        ],
    ),
    ShardConfig: (
        {"root": "ROOT"},
        [
            "DATA --out shards",
            "--out shards DATA --split all --resolution None --skip-bad",
            "--dry-run DATA",
            "DATA --train-list ano_data_train.json --captions c.json --shard-size 5 --out s",
        ],
    ),
    MasksCommand: (
        {"root": "ROOT"},
        ["DATA --base BASE --output MASKS", "--output M DATA --category wood --vectors 2"],
    ),
    RegisterCommand: (
        {"run": "RUN", "name": "NAME"},
        [
            "runs/a tiles",
            "runs/a tiles --licence mine yours --tracking.uri http://h",
            "--licence mine runs/a tiles",
            "runs/a --licence mine --tracking.uri u tiles",
            "--licence mine yours runs/a tiles",
        ],
    ),
    PromoteCommand: (
        {"name": "NAME"},
        ["tiles --metric fid --higher-is-better", "--force tiles --version 2"],
    ),
    PullCommand: ({"model": "MODEL"}, ["models:/tiles@champion --out adapters/tile"]),
    ExportCommand: ({"model": "MODEL"}, ["runs/a --out ours.safetensors", "runs/a"]),
    DemoCommand: ({}, ["", "--out runs/demo --adapter own --seed 3 --num-workers 1"]),
}


def default_of(model: type[BaseModel]) -> BaseModel | None:
    is_run = issubclass(model, RunConfig)
    return model.model_validate(TINY.model_dump()) if is_run else None


@pytest.mark.parametrize(
    ("model", "positional", "line"),
    [
        (model, positional, line)
        for model, (positional, lines) in INVOCATIONS.items()
        for line in lines
    ],
)
def test_options_give_what_tyro_gives(
    model: type[BaseModel], positional: Mapping[str, str], line: str
) -> None:
    args, default = line.split(), default_of(model)
    expected = tyro.cli(marked(model, positional), args=args, default=default)
    result = parse(model, args, prog="x", default=default, positional=positional)
    assert result.model_dump() == expected.model_dump()
    assert type(result) is model


@pytest.mark.parametrize("model", [TrainCommand, SweepConfig, AblationConfig])
def test_a_run_knows_nothing_of_the_command(model: type[RunConfig]) -> None:
    command = parse(model, ["--dry-run", "--optim.steps", "9"], prog="x", default=model())
    assert command.run == RunConfig.model_validate({"optim": {"steps": 9}})
    assert type(command.run) is RunConfig


class Group(Settings):
    """Some settings."""

    sizes: tuple[int, ...] = Field((1, 2), min_length=2)
    rates: dict[str, float] = Field(default_factory=dict)
    stage: int = Field(1, le=3)


class Command(Settings):
    """A command's."""

    root: Path
    out: Path
    flag: bool = False
    group: Group = Group()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--out o", "ROOT: Field required"),
        ("r", "--out: Field required"),
        ("r s --out o", "unexpected argument 's'"),
        ("r --out", "--out: needs a value"),
        ("r --out --flag", "--out: needs a value"),
        ("r --flga", "--flga: no such option; did you mean --flag?"),
        ("r --group.stge=2", "--group.stge: no such option; did you mean --group.stage?"),
        ("r --stage 2", "--stage: no such option; did you mean --group.stage?"),
        ("r --zzz", "--zzz: no such option"),
        ("--root r", "--root: no such option; did you mean --out?"),
        ("r -f", "-f: no such option"),
        ("r --flag=yes", "--flag: takes no value, got 'yes'"),
        ("r --flag yes", "unexpected argument 'yes'"),
        ("r --out o --group.stage 4", "--group.stage: Input should be less than or equal"),
        ("r --out o --group.stage 4", "3, got '4'"),
        ("r --out o --group.sizes 1 x", "--group.sizes: Input should be a valid integer"),
        ("r --out o --group.sizes 1", "--group.sizes: Tuple should have at least 2 items"),
        ("r --out o --group.rates a", "--group.rates: needs pairs of key and value, got 'a'"),
        ("r --out o --group.rates a b", "--group.rates: Input should be a valid number"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(Command, line.split(), prog="x", positional={"root": "ROOT"})
    text = str(caught.value)
    assert message in text
    assert text.endswith(" (see x --help)")
    assert "\n" not in text


def test_a_long_value_is_quoted_whole() -> None:
    value = "/".join(["folder"] * 40)
    with pytest.raises(UserError, match=f"got '{value}'"):
        parse(Command, ["--group.stage", value], prog="x")


def test_help_shows_options_and_what_is_positional(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Command, ["r", "--help"], prog="x", positional={"root": "ROOT"})
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "ROOT" in text
    assert "--group.sizes" in text
    assert "--root" not in text


@pytest.mark.parametrize(
    ("gpus", "batch_size", "expected"), [(0, 8, 2), (0, 7, 1), (1, 8, 1), (4, 8, 4), (3, 8, 2)]
)
def test_the_demo_takes_a_worker_per_gpu(
    monkeypatch, tmp_path: Path, gpus: int, batch_size: int, expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    command = DemoCommand(batch_size=batch_size)
    config = demo._training(command, tmp_path / "shards", tmp_path / "run")
    assert config.cluster.num_workers == expected
    asked = demo._training(DemoCommand(num_workers=8), tmp_path / "shards", tmp_path / "run")
    assert asked.cluster.num_workers == 8
