"""Real runs that are interrupted, lose a worker or meet damaged data."""

import re
import shutil
import signal
import time

import psutil
import pytest

from acontrol.data.reader import ShardReader
from tests.launch import commands
from tests.launch.runs import STEPS, losses_of, options

pytestmark = pytest.mark.slow


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(shards, tmp_path) -> None:
    output = tmp_path / "run"
    args = options(shards, output, steps=4000, every=1000)
    process = commands.start("launch.train", *args)
    deadline = time.monotonic() + 240
    while not losses_of(output):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Stopping after this step" in out
    (checkpoint,) = output.glob("launches/*/bundle-*")
    assert err.splitlines()[-1].startswith("Interrupted. The same command continues")
    assert checkpoint.name in err.splitlines()[-1]


def test_damaged_data_ends_a_run_that_would_restart_for_ever(shards, tmp_path) -> None:
    damaged, output = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, damaged)
    for shard_file in damaged.glob("*.tar"):
        content = bytearray(shard_file.read_bytes())
        content[1000] ^= 1
        shard_file.write_bytes(content)
    args = [*options(damaged, output), "--cluster.max-failures", -1]
    done = commands.run("launch.train", *args)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(r"error: .*\.tar.*No checkpoint yet: the same command starts again", last)


def test_damaged_samples_are_left_out_and_counted(shards, tmp_path) -> None:
    damaged, output = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, damaged)
    shard, sample = ShardReader(str(shards)).places[7]
    content = bytearray((damaged / shard.name).read_bytes())
    content[sample.members[2].offset + 50] ^= 1
    (damaged / shard.name).write_bytes(content)
    args = [*options(damaged, output, steps=2, every=2), "--data.damaged", "skip"]
    done = commands.run("launch.train", *args)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "1 of 18 samples is damaged (5.56%), over data.max_damaged 0.01" in last
    done = commands.run("launch.train", *args, "--data.max-damaged", 0.06)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count("Skipping 1 of 18 samples, damaged (5.56%)") == 1
    assert f"{shard.name}: {sample.key}; first damage: sample {sample.key}, member" in said


def test_a_lost_worker_is_replaced_within_the_launch(whole, shards, tmp_path) -> None:
    output = tmp_path / "run"
    args = [*options(shards, output), "--cluster.max-failures", 1]
    process = commands.start("launch.train", *args)
    deadline = time.monotonic() + 240
    while not list(output.glob("launches/*/bundle-*/manifest.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [
        one
        for one in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(one.cmdline())
    ]
    assert len(workers) == 2
    workers[1].kill()
    assert not list(output.glob(f"launches/*/bundle-{STEPS:08d}")), "it was still needed"
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert len(list(output.glob("launches/*"))) == 1
    assert "Continuing" not in out, "the driver did not start again"
    assert losses_of(output) == losses_of(whole)
