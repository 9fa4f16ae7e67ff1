"""Every benchmark starts; that of a GPU runs to its end, at a tiny size."""

import contextlib
import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path

import psutil
import pytest

import benchmarks
from benchmarks import gpu_ray, scale
from tests.launch import commands


@pytest.mark.slow
def test_the_gpu_benchmark_writes_every_row(tmp_path: Path) -> None:
    done = commands.run(
        "benchmarks.gpu",
        *("--tiny", "--batch", 2, 1, "--rounds", 1, "--out", tmp_path),
        limit_s=3000,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.glob("*_gpu_*.json")
    report = json.loads(file.read_text())
    assert report["config"]["left_out"] == []
    found = {row["metric"] for row in report["rows"]}
    for part in ("latents", "text", "C'", "loss", "gradient"):
        assert f"error of {part} against float32" in found
    for metric in (
        "step / P1t, batch 2",
        "step / P1t, batch 1",
        "images/s, no elision",
        "images/s, nominal, with elision",
        "online / P0",
        "cached / own online",
        "cached / P0",
        "DeepSpeed's engine / bare loop (no Ray)",
        "ASEA, t(T_g 3) / t(0) - 1, batch 2: all layers",
        "ASEA, t(T_g 3) / t(0) - 1, batch 1: first layer's closed form",
        "ASEA, t(T_g 3) / t(0) - 1, batch 2: all layers, compiled",
        "drawing, images/s, batch 8",
        "drawing, speed-up over stock, batch 8",
        "drawing, speed-up over stock, batch 1",
        "drawing, latency of one",
        "launch.train tiny through Ray, in all",
        "through Ray / bare, tiny, online, batch 8",
        "GPU tests passed",
        "loader's capacity / use, one process",
        "data_wait share, no loader process",
        "a large product",
        "compiled blocks / P1t, batch 2",
        "compiled whole / P1t, batch 1",
        "drawing, compiled blocks, channels last / plain, batch 8",
    ):
        assert metric in found
    # Our way and the public trainer's take the same step; low precision is near the other.
    losses = report["config"]["losses_b2"]
    assert len(losses) == 6
    assert max(losses.values()) - min(losses.values()) < 1e-3 * max(losses.values())
    assert report["config"]["profile"][0]["ms"] > 0
    assert (tmp_path / file.with_suffix(".md").name).read_text().count("| error of") == 5


@pytest.mark.parametrize("spread", [0.0, float("nan"), 11.0])
def test_activations_unlike_a_trained_networks_are_refused(spread: float) -> None:
    from benchmarks.full_size import check_spreads

    check_spreads({"latents": 1.0, "prediction": 0.2})
    with pytest.raises(ValueError, match="mid_block"):
        check_spreads({"latents": 1.0, "mid_block": spread})


def test_a_process_that_hangs_is_killed_with_its_children_and_its_output_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parent_of_one.py").write_text(
        "import subprocess, sys, time\n"
        "code = 'import time; time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(gpu_ray.ProcessError, match=r"parent_of_one did not end in 5 s: \d+ "):
        gpu_ray.run_module(["parent_of_one"], 5, tmp_path / "logs")
    child = int((tmp_path / "logs" / "parent_of_one.txt").read_text())
    # Killed a moment ago, on a machine that may be busy; its parent is gone, so it may be left
    # to be reaped.
    deadline = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(child).status() != "zombie":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with pytest.raises(gpu_ray.ProcessError, match=r"ended with 2: .*unrecognized arguments"):
        gpu_ray.run_module(["http.server", "--nonsense"], 30, tmp_path)
    assert "--nonsense" in (tmp_path / "http.server.txt").read_text()


MODULES = [info.name for info in pkgutil.iter_modules(benchmarks.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_each_benchmark_imports_and_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    if not hasattr(module, "main"):
        return
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_the_scale_page_has_the_tables_that_its_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale"])
    scale.main()
    _, *tables = capsys.readouterr().out.strip().split("\n\n")
    page = (Path(scale.__file__).parents[1] / "docs" / "scale.md").read_text()
    assert len(tables) == 2
    assert all(f"{table}\n" in page for table in tables)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import gpu

    with pytest.raises(SystemExit) as stop:
        gpu.main([])
    assert stop.value.code == 2
    assert "no GPU here" in capsys.readouterr().err


def test_a_stage_that_fails_is_listed_and_the_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu

    def fail(_: gpu.Bench) -> None:
        raise gpu_ray.ProcessError("pytest ended with 1: 1 failed")

    plan = {"fine": (lambda bench: bench.row("one", 1), 0), "tests": (fail, 0)}
    monkeypatch.setattr(gpu, "PLAN", plan)
    monkeypatch.setattr(gpu, "join_alone", lambda: None)  # No stage here needs a group.
    options = ["--tiny", "--out", str(tmp_path)]
    assert gpu.main(options) == 1
    assert "failed: tests (logs in " in capsys.readouterr().out
    (file,) = tmp_path.glob("*_gpu_*.json")
    report = json.loads(file.read_text())
    assert [row["metric"] for row in report["rows"]] == ["one"]
    assert report["config"]["left_out"] == ["tests: pytest ended with 1: 1 failed"]
    del plan["tests"]
    assert gpu.main(options) == 0
