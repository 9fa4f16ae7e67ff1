"""What a user can get wrong: one line, exit status 2, nothing written."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from acontrol.config import RunConfig
from acontrol.data.builtin import write_dataset
from acontrol.errors import UserError
from acontrol.networks.locate import built_in_adapter
from launch import demo, generate, register, shard, train
from tests.launch import commands


def error_of(run: Callable[[list[str]], None], *args: object) -> str:
    with pytest.raises(UserError) as caught:
        run([str(arg) for arg in args])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name a preset first, one of: tiny, mvtec-sd15"),
        (["huge"], "no preset 'huge'; choose from tiny, mvtec-sd15, mvtec-sd15-inpainting"),
        (["tinny"], "no preset 'tinny'; did you mean tiny? (choose from tiny, mvtec-sd15"),
        (["tiny", "--asea.stepz", "3"], "--asea.stepz"),
        (
            ["tiny", "--steps", "3"],
            "--steps: no such option; did you mean --asea.steps or --optim.steps or",
        ),
        (["tiny", "--asea.steps", "-1"], "--asea.steps: Input should be greater"),
        (["tiny", "--asea.steps", "-1"], "got '-1'"),
        (["tiny", "--asea.steps", "three"], "'three'"),
        (["tiny", "--zero.stage", "4"], "'4'"),
        (["tiny", "--dropout.text", "0.95"], "text + semantic + both must stay under 1"),
        (["tiny", "--optim.batch-size", "7", "--cluster.num-workers", "2"], "does not divide"),
        (["tiny", "--data.resolution", "65"], "--data.resolution: Input should be a multiple"),
        (["tiny", "--optim.steps"], "--optim.steps"),
        (["tiny", "--config"], "--config needs a file"),
        (["tiny", "--config", "/nowhere.json"], "/nowhere.json"),
        (["tiny", "--data.shards", "/nowhere"], "--output RUN is needed"),
        (["tiny", "--output", "/tmp/x"], "--data.shards DIR is needed"),
        (
            ["tiny", "--output", "/tmp/x", "--data.shards", "/nowhere"],
            "/nowhere: no index.json",
        ),
    ],
)
def test_train_explains(args, words) -> None:
    assert words in error_of(train.run, *args)


def test_a_folder_of_another_kind_is_named(built_in_data, tmp_path) -> None:
    """Images for shards, shards for images, and a folder of runs for a run."""
    for given, root in (
        (built_in_data, built_in_data),
        (built_in_data / "wood", built_in_data / "wood"),
        (built_in_data / "wood" / "test" / "crack", built_in_data / "wood"),
    ):
        message = error_of(
            train.run, "tiny", "--output", tmp_path / "r", "--data.shards", given
        )
        assert message.startswith(f"{given}: is a folder of images, not of shards")
        assert f"'acontrol shard {root} --out SHARDS'" in message
    # An empty folder beside categories is none of their images.
    kinds = {"categories": ("wood",), "defects": ("stain",)}
    write_dataset(tmp_path / "all", num_good=1, num_good_test=1, num_defects=1, **kinds)
    (tmp_path / "all" / "beside").mkdir()
    args = ("tiny", "--output", tmp_path / "r", "--data.shards", tmp_path / "all" / "beside")
    assert "not of shards" not in error_of(train.run, *args)
    shards = tmp_path / "shards"
    shard.run([str(built_in_data), "--out", str(shards)])
    runs = tmp_path / "runs"
    shutil.copytree(built_in_adapter(), runs / "tile" / "adapter")
    (runs / "unfinished").mkdir()
    out = ("--out", tmp_path / "g")
    message = error_of(generate.run, "--model", runs, "--data", built_in_data, *out)
    assert message.endswith(f"; it holds runs, give one of them: {runs / 'tile'}")
    message = error_of(generate.run, "--model", runs / "tile", "--data", shards, *out)
    assert "it holds shards: give the folder of images that they were made from" in message
    message = error_of(register.run, runs, "tiles")
    assert message.endswith(f"; it holds runs, give one of them: {runs / 'tile'}")
    assert not (tmp_path / "g").exists() and not (tmp_path / "r").exists()


def test_a_config_file_is_checked(tmp_path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"optim": {"steps": 0, "stepz": 1}}))
    message = error_of(train.run, "tiny", "--config", file)
    assert "optim.steps: Input should be greater than or equal to 1, got 0" in message
    assert "optim.stepz: Extra inputs are not permitted" in message


def test_a_config_file_and_options_combine(tmp_path) -> None:
    file = tmp_path / "run.json"
    file.write_text(RunConfig(seed=5).model_dump_json())
    config = train.read_config(["tiny", "--optim.steps", "9", "--config", str(file)])
    assert (config.seed, config.optim.steps) == (5, 9)


def test_a_base_that_is_not_there_is_named(built_in_data, tmp_path) -> None:
    shard.run([str(built_in_data), "--out", str(tmp_path / "s")])
    args = ["tiny", "--output", tmp_path / "r", "--data.shards", tmp_path / "s"]
    assert "pinned commit" in error_of(train.run, *args, "--base.path", "someone/model")
    assert "no such folder" in error_of(train.run, *args, "--base.path", "./model")
    assert "cannot learn" in error_of(train.run, *args, "--sga.scale", "0")
    assert "neither an adapter" in error_of(train.run, *args, "--init", "./adapter")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["/nowhere", "--out", "x"], "/nowhere: does not exist"),
        (["DATA"], "--out DIR is needed"),
        (["DATA", "--out", "OUT", "--split", "half"], "'half'"),
        (
            ["DATA", "--out", "OUT", "--resolution", "3"],
            "--resolution: Input should be greater",
        ),
        (["DATA", "--out", "OUT", "--captions", "/nowhere.json"], "/nowhere.json"),
        (["DATA", "--out", "DATA"], "is the same folder as ROOT"),
    ],
)
def test_shard_explains(args, words, built_in_data, tmp_path) -> None:
    places = {"DATA": built_in_data, "OUT": tmp_path / "out"}
    assert words in error_of(shard.run, *(places.get(arg, arg) for arg in args))
    assert not (tmp_path / "out").exists()


def test_a_bad_image_stops_and_can_be_left_out(built_in_data, tmp_path, capsys) -> None:
    root = tmp_path / "data"
    shutil.copytree(built_in_data, root)
    bad = root / "wood" / "test" / "crack" / "000.png"
    bad.write_bytes(b"no picture")
    message = error_of(shard.run, root, "--out", tmp_path / "s", "--split", "all")
    assert str(bad) in message
    assert message.endswith(
        "(acontrol inspect lists every bad image, --skip-bad leaves them out)"
    )
    assert not (tmp_path / "s").exists()
    shard.run([str(root), "--out", str(tmp_path / "s"), "--split", "all", "--skip-bad"])
    printed = capsys.readouterr()
    assert f"left out: {bad}" in printed.err
    assert "left out 1 of 18 images" in printed.err
    assert "17 samples" in printed.out


def test_a_dry_run_ends_as_the_run_would(built_in_data, tmp_path) -> None:
    root = tmp_path / "wood"
    shutil.copytree(built_in_data / "wood", root)
    for file in root.glob("ground_truth/*/*"):  # Every image is bad then.
        file.unlink()
    args = [root, "--split", "all", "--skip-bad"]
    message = error_of(shard.run, *args, "--dry-run")
    assert message == error_of(shard.run, *args, "--out", tmp_path / "s")
    assert message.startswith("no defect image to write")


@pytest.mark.parametrize("out", ["FILE/x", "FILE", "n" * 300])
def test_a_place_that_cannot_be_written_is_one_line(built_in_data, tmp_path, out) -> None:
    (tmp_path / "FILE").touch()
    done = commands.run("launch.shard", built_in_data, "--out", tmp_path / out)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_a_dry_run_counts_and_writes_nothing(built_in_data, tmp_path, capsys) -> None:
    shard.run([str(built_in_data), "--out", str(tmp_path / "s"), "--dry-run"])
    printed = capsys.readouterr().out
    assert "wood/crack: 1" in printed
    assert "6 samples would go into 1 shard" in printed
    assert list(tmp_path.iterdir()) == []


def test_generate_wants_a_model_and_an_empty_folder(built_in_data, tmp_path) -> None:
    args = ["--data", built_in_data, "--out", tmp_path / "g"]
    assert "no such folder" in error_of(generate.run, "--model", "/nowhere", *args)
    assert "adapter" in error_of(generate.run, "--model", tmp_path, *args)
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "mine").touch()
    assert "not empty" in error_of(generate.run, "--model", tmp_path, *args)


def test_too_many_images_are_refused_in_one_line(built_in_data, tmp_path) -> None:
    args = ["--model", built_in_adapter(), "--data", built_in_data, "--out", tmp_path / "out"]
    message = error_of(generate.run, *args, "--count", 1_000_001)
    assert message.startswith("--count: Input should be less than or equal to 1000000")


def test_a_training_dry_run_needs_nothing(built_in_data, tmp_path, capsys) -> None:
    train.run(["mvtec-sd15", "--dry-run"])
    printed = capsys.readouterr().out
    assert "trainable: 19,169,280 parameters in 16 cross-attention layers" in printed
    assert "unet 859,520,964" in printed
    missing = [line for line in printed.splitlines() if line.startswith("missing: ")]
    assert len(missing) == 4  # --output, --data.shards, and two checkpoints.
    (total,) = re.findall(r"8 samples per pass: (\S+) GiB  <- this run", printed)
    assert float(total) < 24  # In two passes a step.
    assert "device: no GPU on this machine" in printed
    assert "steps: 30000 = 480000 samples" in printed
    # Without --dry-run the same list, as an error.
    with pytest.raises(UserError) as caught:
        train.run(["mvtec-sd15"])
    told = str(caught.value)
    assert "\n" not in told
    assert all(line.removeprefix("missing: ") in told for line in missing)
    shard.run([str(built_in_data), "--out", str(tmp_path / "s"), "--split", "all"])
    shards = ["--data.shards", str(tmp_path / "s"), "--cluster.num-workers", "2"]
    train.run(["tiny", "--dry-run", *shards, "--optim.steps", "9"])
    printed = capsys.readouterr().out
    assert "data: 18 samples in 1 shard (split all); 4 per rank and step" in printed
    assert "9 steps = 4.0 epochs" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert "no index.json" in error_of(train.run, "tiny", "--dry-run", "--data.shards", "/no")


def test_the_demo_replaces_nothing_but_a_demo(tmp_path) -> None:
    (tmp_path / "mine").touch()
    assert "not an earlier demo" in error_of(demo.run, "--out", tmp_path)
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("module", ["launch.train", "launch.shard", "launch.generate"])
def test_a_process_prints_one_line_and_exits_with_2(module) -> None:
    needed = {
        "train": ["tiny"],
        "shard": ["x"],
        "generate": ["--model", "m", "--data", "d", "--out", "o"],
    }
    done = commands.run(module, *needed[module.removeprefix("launch.")], "--no-such-option")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "--no-such-option" in line


@pytest.mark.parametrize("module", [train, shard, generate, demo])
def test_help_exits_with_0(module, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        module.run(["--help"])
    assert stop.value.code == 0
    assert f"python -m {module.__name__}" in capsys.readouterr().out


def test_the_example_data_needs_split_all(tmp_path) -> None:
    data = os.environ.get("ACONTROL_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data"
    root = Path(data, "mvtec_fewshot")
    if not root.is_dir():
        pytest.skip(f"no example data at {root}")
    message = error_of(shard.run, root, "--out", tmp_path / "s")
    assert "bottle/broken_large (2)" in message
    assert "--split all" in message
    shard.run([str(root), "--out", str(tmp_path / "s"), "--split", "all"])
