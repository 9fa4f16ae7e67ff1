"""Where outputs may not go, and what ~ means, in every command; nothing is written."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from acontrol.config import BUILT_IN, DataConfig, RunConfig
from acontrol.data.builtin import write_dataset
from acontrol.data.features import feature_folder
from acontrol.data.lock import only_launch, only_writer
from acontrol.data.overlap import refuse_overlap
from acontrol.data.reader import ShardReader
from acontrol.data.settings import ShardConfig
from acontrol.errors import UserError
from acontrol.evaluation.comparison import named_folders
from acontrol.evaluation.settings import QualityConfig
from acontrol.networks.locate import digest
from acontrol.runs.paths import absolute
from acontrol.runs.storage import storage_path
from launch import (
    evaluate,
    export,
    generate,
    inspect,
    masks,
    precompute,
    pretrain,
    pull,
    shard,
    split,
)
from launch.options import parse
from launch.train import read_config
from tests.launch import commands

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


@pytest.mark.parametrize("earlier", [False, True])
def test_shards_are_written_by_one_command_at_a_time(
    data: Path, tmp_path: Path, earlier: bool
) -> None:
    out, place = tmp_path / "new" / "out", tmp_path / "new" / ".out.partial"
    args = [str(data), "--split", "all", "--out", str(out)]
    if earlier:
        shard.run(args)
    before = listing(tmp_path)
    message = f"{place}: another launch is running there"
    with only_writer(out):
        if earlier:
            assert refusal(lambda: shard.run(args)) == message
        else:
            second = commands.run("launch.shard", *args)
            assert (second.returncode, second.stdout) == (2, "")
            assert second.stderr == f"error: {message}\n"
    assert listing(tmp_path) == before
    shard.run(args)
    names = sorted(path.name for path in (tmp_path / "new").rglob("*"))
    assert names == ["index.json", "out", "shard-00000.tar"]


def test_a_model_is_pulled_by_one_command_at_a_time(tmp_path: Path) -> None:
    """Before the server is asked: nothing answers at that address."""
    args = ["models:/a@b", "--out", str(tmp_path / "out")]
    with only_writer(tmp_path / "out"):
        message = refusal(lambda: pull.run([*args, "--tracking.uri", "http://127.0.0.1:9"]))
    assert message == f"{tmp_path / '.out.partial'}: another launch is running there"
    assert listing(tmp_path) == []


def test_an_unfinished_job_survives_the_lock_of_another_command(tmp_path: Path) -> None:
    job = tmp_path / ".out.partial" / "job.json"
    job.parent.mkdir()
    job.touch()
    with only_writer(tmp_path / "out"):
        pass
    assert listing(tmp_path) == [job.parent, job]


def test_features_are_computed_by_one_command_at_a_time(data: Path, tmp_path: Path) -> None:
    shards, features = tmp_path / "shards", tmp_path / "features"
    shard.run([str(data), "--split", "all", "--out", str(shards)])
    args = ["tiny", "--data.shards", str(shards), "--data.features", str(features)]
    config = read_config(args)
    folder = feature_folder(config, ShardReader(str(shards)), digest(config.base))
    with only_launch(folder.path):
        message = refusal(lambda: precompute.run(args))
    assert message == f"{folder.path}: another launch is running there"
    assert os.listdir(folder.path) == [".lock"]


def test_no_single_file_is_written_over_an_input(data: Path, tmp_path: Path) -> None:
    picture = next((data / "wood/train/good").iterdir())
    before = picture.read_bytes()
    message = refusal(lambda: inspect.run([str(data), "--out", str(picture)]))
    assert "exists and is no page of ours" in message
    message = refusal(lambda: split.run([str(data), "--by", "third", "--out", str(picture)]))
    assert message == f"--out {picture}: exists and is no split file; name another file"
    assert picture.read_bytes() == before
    message = refusal(lambda: split.run([str(data), "--by", "third", "--out", str(tmp_path)]))
    assert message == f"--out {tmp_path}: is a folder; name the file to write"
    for _ in range(2):  # An earlier page is replaced.
        inspect.run([str(data), "--out", str(tmp_path / "page.html")])
    weights = MODEL / "weights.safetensors"
    assert "beside a model" in refusal(lambda: export.run([str(MODEL), "--out", str(weights)]))
    assert not weights.exists()


def test_measurements_replace_nothing_else(data: Path, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine")
    args = ["quality", "--real", str(data), "--synthetic", str(data), "--out", str(tmp_path)]
    message = refusal(lambda: evaluate.run(args))
    assert message == f"--out {tmp_path}: report.md is there already; name another folder"
    assert listing(tmp_path) == [tmp_path / "report.md"]


def test_no_folder_is_locked_where_a_file_is(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="run: is a file"), only_launch(tmp_path / "run"):
        pass
    args = [str(data), "--output", str(tmp_path / "run")]
    assert "run: is a file, and a folder is written there" in refusal(lambda: masks.run(args))


def test_a_model_that_is_a_file_is_named_as_such(data: Path, tmp_path: Path) -> None:
    file = MODEL / "config.json"
    args = ["--model", str(file), "--data", str(data), "--out", str(tmp_path / "o")]
    message = refusal(lambda: generate.run(args))
    assert message == f"--model {file}: is a file; give the adapter's folder"
