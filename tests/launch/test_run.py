"""The main job with real Ray workers, DeepSpeed and MLflow, killed and continued."""

import json
import re
import shutil
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from acontrol.data.mvtec import open_folder
from acontrol.data.validation import check
from acontrol.errors import UserError
from acontrol.networks.locate import built_in_base
from launch import generate
from launch import train as launch_train
from tests.launch import commands
from tests.launch.runs import EVERY, STEPS, losses_of, options, values_of

pytestmark = pytest.mark.xdist_group("whole")


@pytest.fixture(scope="module")
def continued(shards, ray_address, tmp_path_factory) -> tuple[Path, str]:
    """A run whose driver was killed after its first checkpoint, and the same command again."""
    output = tmp_path_factory.mktemp("job") / "killed"
    process = commands.start("launch.train", *options(shards, output))
    deadline = time.monotonic() + 240
    while not list(output.glob("launches/*/bundle-*/manifest.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # As when a machine goes down: Ray's workers would otherwise outlive the driver for some
    # seconds and may finish so short a run.
    commands.kill_with_children(process)
    done = commands.run("launch.train", *options(shards, output), cluster=ray_address)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_mlflow_holds_the_loss_curve_and_the_sample_grid(whole) -> None:
    losses = losses_of(whole)
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert all(np.isfinite(loss) for _, loss in losses)
    (grid,) = whole.parent.rglob("samples*.png")
    pixels = np.asarray(Image.open(grid))
    assert pixels.std() > 10
    database = sqlite3.connect(whole.parent / "mlflow.db")
    params = dict(database.execute("select key, value from params").fetchall())
    tags = dict(database.execute("select key, value from tags").fetchall())
    (status,) = database.execute("select status from runs").fetchone()
    database.close()
    assert params["asea.steps"] == "3"
    assert params["optim.steps"] == str(STEPS)
    assert "version.deepspeed" in tags
    assert status == "FINISHED"


def test_mlflow_shows_where_a_step_goes(whole) -> None:
    phases = ("data_wait", "forward", "backward", "optimizer")
    shares = [dict(values_of(whole, f"{phase}_share")) for phase in phases]
    for step in range(1, STEPS + 1):
        assert sum(share[step] for share in shares) == pytest.approx(1)


def test_mlflow_shows_what_the_node_is_used_for(whole) -> None:
    shares = values_of(whole, "system/node-0/cpu_utilization_percentage")
    assert shares
    assert all(0 <= value <= 100 for _, value in shares)
    memory = values_of(whole, "system/node-0/system_memory_usage_megabytes")
    assert all(value > 100 for _, value in memory)


def test_the_trace_has_the_asked_steps_whole(whole) -> None:
    (file,) = whole.glob("launches/*/trace.json")
    events = json.loads(file.read_text())["traceEvents"]
    steps = {event["name"] for event in events if "ProfilerStep" in event.get("name", "")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3"}
    names = {event.get("name") for event in events}
    assert {"aten::conv2d", "aten::scaled_dot_product_attention"} <= names, "the forward"
    assert any("ConvolutionBackward" in str(name) for name in names), "the backward"


def test_a_killed_run_continues_with_the_same_losses(whole, continued) -> None:
    output, printed = continued
    (step,) = re.findall(r"Continuing from step (\d+)", printed)
    assert EVERY <= int(step) <= STEPS
    assert losses_of(output) == losses_of(whole)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        ours, theirs = ((run / "adapter" / name).read_bytes() for run in (output, whole))
        assert ours == theirs, name


def test_a_finished_run_has_nothing_to_do(whole, shards, capsys) -> None:
    launch_train.run([str(option) for option in options(shards, whole)])
    printed = capsys.readouterr().out
    assert "Nothing to do" in printed and printed.count("MLflow:") == 1


def test_workers_that_do_not_start_say_what_they_lack(
    shards: Path, ray_address: str, tmp_path: Path
) -> None:
    lacking = ("--cluster.accelerator-type", "H100", "--cluster.start-s", 3)
    run = tmp_path / "run"
    done = commands.run("launch.train", *options(shards, run), *lacking, cluster=ray_address)
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if "no training within 3 s" in line]
    assert "2 workers, each with 1 CPU (" in line
    assert "0.001 accelerator_type:H100 (0 of 0 free)" in line
    assert "/tmp/ray/session_latest/logs" in line
    assert not list(run.rglob("bundle-*"))
    database = sqlite3.connect(tmp_path / "mlflow.db")
    assert database.execute("select status from runs").fetchall() == [("FAILED",)]
    database.close()


def test_a_run_with_other_settings_is_not_continued(whole, shards) -> None:
    changed = [*options(shards, whole), "--asea.steps", 1]
    with pytest.raises(UserError, match=r"other settings \(asea\.steps: 3 -> 1\)"):
        launch_train.run([str(option) for option in changed])


def test_one_process_without_ray_has_the_same_losses(whole, in_one_process) -> None:
    losses = in_one_process["online"]
    assert losses == pytest.approx([loss for _, loss in losses_of(whole)], abs=1e-5)
    assert losses != [losses[0]] * STEPS


def generate_into(out: Path, whole: Path, data: Path, *more: object) -> None:
    args = ["--model", whole, "--data", data, "--out", out, "--steps", 2, "--batch-size", 3]
    generate.run([str(arg) for arg in [*args, "--gate", "keep", *more]])


def test_what_is_drawn_is_a_data_set_and_can_be_drawn_again(
    whole, built_in_data, tmp_path
) -> None:
    for name in ("a", "b"):
        generate_into(tmp_path / name, whole, built_in_data, "--count", 2, "--seed", 3)
    files = [file for file in (tmp_path / "a").rglob("*") if file.is_file()]
    kinds = 6
    alone = ["manifest.jsonl", "job.json", "index.html"]
    assert len(files) == 3 * 12 + kinds + len(alone)  # Image, mask and thumbnail.
    for file in files:
        again = tmp_path / "b" / file.relative_to(tmp_path / "a")
        assert file.read_bytes() == again.read_bytes(), file
    images = open_folder(tmp_path / "a").labelled("all")
    checked = check(images, skip_bad=False)
    assert (len(checked.good), checked.bad) == (12, [])
    manifest = (tmp_path / "a" / "manifest.jsonl").read_text()
    lines = [json.loads(line) for line in manifest.splitlines()]
    assert len({line["seed"] for line in lines}) == 12
    for line in lines:
        normal = np.asarray(Image.open(built_in_data / line["normal"]))
        image = np.asarray(Image.open(tmp_path / "a" / line["image"]))
        mask = np.asarray(Image.open(tmp_path / "a" / line["mask"])) > 0
        assert np.array_equal(image[~mask], normal[~mask])
        assert not np.array_equal(image[mask], normal[mask])


def test_without_good_images_normal_supplies_them(whole, built_in_data, tmp_path) -> None:
    root = tmp_path / "defects" / "wood"
    shutil.copytree(built_in_data / "wood", root)
    shutil.rmtree(root / "train")
    with pytest.raises(UserError, match=r"no good images .* --normal ROOT"):
        generate_into(tmp_path / "g", whole, root, "--defect", "crack")
    assert not (tmp_path / "g").exists()
    normal = ("--normal", built_in_data, "--count", 1)
    generate_into(tmp_path / "g", whole, root, "--defect", "crack", *normal)
    assert len(open_folder(tmp_path / "g").labelled("all", "wood", "crack")) == 1


def test_another_base_than_the_trained_one_is_refused(
    whole, built_in_data, tmp_path, tiny_base
) -> None:
    other = tmp_path / "base"
    shutil.copytree(built_in_base(), other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"note": "changed"}))
    with pytest.raises(UserError, match="not the one"):
        generate_into(tmp_path / "g", whole, built_in_data, "--base-path", other)


@pytest.mark.slow
def test_zero_3_exports_and_draws_what_zero_1_does(shards, whole, tmp_path) -> None:
    output = tmp_path / "three"
    done = commands.run("launch.train", *options(shards, output), "--zero.stage", 3)
    assert done.returncode == 0, done.stderr
    assert list(output.parent.rglob("samples*.png"))
    name = Path("adapter", "diffusion_pytorch_model.safetensors")
    ours, theirs = (load_file(run / name)["proj.weight"] for run in (output, whole))
    assert (ours - theirs).abs().max() <= 1e-6
