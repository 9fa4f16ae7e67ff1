"""A drawing by another kernel of attention."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from acontrol.data.images import read_image
from acontrol.networks.locate import built_in_adapter
from launch import generate
from tests.train.ranks import run_ranks

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def is_fused(data: Path, out: Path, kernel: str, *more: str) -> bool:
    """Draw a crack on wood; whether the fused kernel was taken anywhere."""
    where = ["--model", built_in_adapter(), "--data", data, "--out", out]
    what = ["--category", "wood", "--defect", "crack", "--split", "all", "--count", "1"]
    how = ["--steps", "2", "--gate", "off", "--attention", kernel, *more]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        generate.run([str(word) for word in (*where, *what, *how)])
    return FUSED in {event.key for event in profiler.key_averages()}


def test_a_drawing_by_plain_operations_says_so_and_is_nearly_the_same(
    built_in_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused, images = {}, {}
    for kernel in ("auto", "math"):
        out = tmp_path / kernel
        fused[kernel] = is_fused(built_in_data, out, kernel)
        (file,) = (out / "wood" / "test" / "crack").glob("*.png")
        images[kernel] = read_image(file).astype(int)
    assert fused == {"auto": True, "math": False}
    assert np.abs(images["auto"] - images["math"]).max() <= 1
    assert json.loads((tmp_path / "math" / "job.json").read_text())["attention"] == "math"
    capsys.readouterr()
    again = ["--model", str(built_in_adapter()), "--data", str(built_in_data)]
    generate.run([*again, "--out", str(tmp_path / "re"), "--replay", str(tmp_path / "math")])
    assert "attention was math, now auto: pixels may differ" in capsys.readouterr().err


def compiled(data: Path, out: Path) -> dict[str, Any]:
    """Whether compiled drawings took the fused kernel, and what was printed.

    In a process of its own: the tests' type checks do not compile.
    """
    make = torch.compile

    def trace(run: Any, **settings: Any) -> Any:
        return make(run, **{**settings, "backend": "aot_eager"})

    # Tracing chooses the kernel for good; making machine code of it takes a minute more.
    torch.compile = trace
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for kernel in ("math", "auto"):
            found[kernel] = is_fused(data, out / kernel, kernel, "--compile", "blocks")
    return {**found, "printed": printed.getvalue()}


def test_a_compiled_drawing_keeps_the_chosen_kernel(
    built_in_data: Path, tmp_path: Path
) -> None:
    found = run_ranks(compiled, 1, tmp_path, built_in_data, tmp_path)
    assert "runs uncompiled" not in found["printed"]
    assert found["printed"].count("1 image with masks") == 2
    assert (found["math"], found["auto"]) == (False, True)
