"""Where outputs may not go, and what ~ means, in every command; nothing is written."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from acontrol.config import BUILT_IN, DataConfig, RunConfig
from acontrol.data.builtin import write_dataset
from acontrol.data.overlap import refuse_overlap
from acontrol.data.settings import ShardConfig
from acontrol.errors import UserError
from acontrol.evaluation.comparison import named_folders
from acontrol.evaluation.settings import QualityConfig
from acontrol.runs.lock import only_launch
from acontrol.runs.paths import absolute
from acontrol.runs.storage import storage_path
from launch import evaluate, generate, masks, pretrain, shard
from launch.options import parse

MODEL = Path(__file__).parents[2] / "acontrol/assets/tiny-adapter"
COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], tuple[str, ...]]] = {
    "shard": (shard.run, ("DATA", "--out", "OUT")),
    "generate": (generate.run, ("--model", "MODEL", "--data", "DATA", "--out", "OUT")),
    "quality": (
        evaluate.run,
        ("quality", "--real", "DATA", "--synthetic", "x=DATA", "--out", "OUT"),
    ),
    "localization": (evaluate.run, ("localization", "--real", "DATA", "--out", "OUT")),
    "classification": (evaluate.run, ("classification", "--real", "DATA", "--out", "OUT")),
    "ablation": (
        evaluate.run,
        ("ablation", "tiny", "--real", "DATA", "--data.shards", "S", "--out", "OUT"),
    ),
    "masks": (masks.run, ("DATA", "--output", "OUT")),
    "pretrain": (pretrain.run, ("DATA", "--output", "OUT")),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places") / "data"
    write_dataset(root, num_good=1, num_good_test=1, num_defects=3, categories=("wood",))
    return root


def listing(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", ["", "wood/test/new", "linked/x", "../data/wood"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_inside_the_data_is_refused(
    data: Path, tmp_path: Path, command: str, place: str
) -> None:
    run, words = COMMANDS[command]
    (tmp_path / "linked").symlink_to(data)
    out = tmp_path / place if place.startswith("linked") else data / place
    named = {"DATA": str(data), "OUT": str(out), "MODEL": str(MODEL), "x=DATA": f"x={data}"}
    before = listing(data.parent)
    message = refusal(lambda: run([named.get(word, word) for word in words]))
    assert str(out) in message and str(data) in message and "would be read as data" in message
    assert listing(data.parent) == before and listing(tmp_path) == [tmp_path / "linked"]


@pytest.mark.parametrize("name", ["masks_path", "normal", "replay"])
def test_a_generated_set_lies_in_none_of_its_inputs(
    data: Path, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other"
    write_dataset(other, num_good=1, num_good_test=0, num_defects=1, categories=("wood",))
    option = f"--{name.replace('_', '-')}"
    args = ["--model", MODEL, "--data", data, "--out", other / "x", option, other]
    args += ["--masks", "file"] if name == "masks_path" else []
    message = refusal(lambda: generate.run([str(arg) for arg in args]))
    assert message.startswith(f"--out {other}/x: is inside {option} {other}")


@pytest.mark.parametrize(("output", "features"), [("s/run", None), ("f", "f"), ("o", "s/f")])
def test_a_run_lies_in_neither_shards_nor_features(
    tmp_path: Path, output: str, features: str | None
) -> None:
    config = RunConfig(
        output=str(tmp_path / output),
        data=DataConfig(
            shards=str(tmp_path / "s"), features=features and str(tmp_path / features)
        ),
    )
    assert "would be read as data" in refusal(lambda: absolute(config))


def test_places_beside_and_above_an_input_and_in_a_store_are_fine(tmp_path: Path) -> None:
    refuse_overlap(tmp_path / "data2", "--out", {"--data": tmp_path / "data", "--x": None})
    refuse_overlap(tmp_path, "--out", {"--data": tmp_path / "data"})
    refuse_overlap(None, "--out", {"--data": tmp_path})
    refuse_overlap("s3://b/run", "--output", {"--data.shards": tmp_path})


def test_the_home_is_put_for_its_sign_wherever_a_path_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(data.parent))
    home = data.parent
    for args in (["~/data", "--out=~/s"], ["~/data", "--out", "~/s"]):
        read = parse(ShardConfig, args, prog="shard", positional={"root": "ROOT"})
        assert (read.root, read.out) == (data, home / "s")
    quality = ["--real", "~/data", "--synthetic", "a=~/data", "~/data", "--out", "~"]
    several = parse(QualityConfig, quality, prog="quality")
    assert several.synthetic == (f"a={data}", str(data)) and several.out == home
    assert named_folders(["a=~/data"]) == {"a": data}
    config = RunConfig(output="~/run", data=DataConfig(shards="~/s", features="~/f"))
    full = absolute(config.with_values({"base.path": "~/data"}))
    assert full.output == str(home / "run") and full.data.shards == str(home / "s")
    assert full.base.path == str(data) and absolute(config).base.path == BUILT_IN
    assert storage_path("~/data") == data
    monkeypatch.chdir(tmp_path)
    shard.run(["~/data", "--split", "all", "--out=~/shards"])
    assert (home / "shards/index.json").is_file() and os.listdir(tmp_path) == []


# Where a launch works, for an output called out.
WORKPLACES = {"generate": ".out.partial", "masks": "out", "pretrain": "out-training"}


@pytest.mark.parametrize("command", WORKPLACES)
def test_a_second_launch_into_one_folder_says_so(
    data: Path, tmp_path: Path, command: str
) -> None:
    run, words = COMMANDS[command]
    out = tmp_path / "out"
    named = {"DATA": str(data), "OUT": str(out), "MODEL": str(MODEL)}
    with only_launch(tmp_path / WORKPLACES[command]):
        message = refusal(lambda: run([named.get(word, word) for word in words]))
    assert message == f"{tmp_path / WORKPLACES[command]}: another launch is running there"
    assert not out.exists() or os.listdir(out) == [".lock"]


def test_shards_replace_nothing_else(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    message = refusal(lambda: shard.run([str(data), "--out", str(tmp_path)]))
    assert message == f"{tmp_path} exists and is not empty: name another --out"
