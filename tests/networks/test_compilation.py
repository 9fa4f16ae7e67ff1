"""torch.compile on the tiny U-Net: the same numbers, no graph after the first step."""

import importlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.profiler import ProfilerActivity, profile

from acontrol.config import (
    AseaConfig,
    BaseConfig,
    CsmConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    RuntimeConfig,
)
from acontrol.config.training import Attention
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter, install_processors
from acontrol.networks.compilation import (
    CODE,
    WRONG,
    attention_by,
    chosen_extent,
    compile_asea,
    compile_for_drawing,
    compile_for_training,
    keep_compiled_code,
)
from acontrol.networks.load import load_base
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.loading import load_pipeline
from benchmarks.bench_step import random_batch
from tests.train.ranks import run_ranks

SIZE = 4


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler found")


def compiled(extent: str) -> dict[str, Any]:
    """Steps before and after compiling, in a process without the tests' checks of shapes.

    These checks are around every function, and cannot be traced.
    """
    base = load_base(BaseConfig())
    torch.manual_seed(0)
    adapter = SemanticAdapter.from_unet(base.unet, 64)
    model = AnomalyControl(base, adapter, RunConfig(data=DataConfig(resolution=64)))
    weight, names = adapter.proj.weight, list(base.unet.state_dict())

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        loss = model(random_batch(SIZE, 64, 64)).loss
        loss.backward()
        gradient, weight.grad = weight.grad, None
        return loss.detach(), gradient

    @torch.no_grad()
    def without_gradient() -> torch.Tensor:
        install_processors(model.unet)  # As the pipeline of a sample grid does.
        return torch.stack([model(random_batch(size, 64, 64)).loss for size in (2, 5)])

    loss, gradient = step()
    plain = without_gradient()
    refused = compile_for_training(model, "blocks", SIZE, backend=broken)
    wrong = compile_for_training(model, "whole", SIZE)
    after_refusal = step()[0]
    torch._dynamo.reset()
    counters.clear()
    reason = compile_for_training(model, extent, SIZE, backend="aot_eager")
    made = graphs()
    found, slope = step()
    again = step()[0]
    return {
        "refused": refused,
        "wrong": wrong,
        "after refusal": torch.equal(after_refusal, loss),
        "reason": reason,
        "loss": (loss.item(), found.item(), again.item()),
        "gradient": ((slope - gradient).norm() / gradient.norm()).item(),
        "without gradient": torch.equal(without_gradient(), plain),
        "made": made,
        "later": graphs() - made,
        "recompiles": len(counters["recompiles"]) + len(counters["graph_break"]),
        "names": list(base.unet.state_dict()) == names,
    }


@pytest.mark.parametrize("extent", ["blocks", pytest.param("whole", marks=pytest.mark.slow)])
def test_a_compiled_step_is_the_plain_one(tmp_path, extent) -> None:
    result = run_ranks(compiled, 1, tmp_path, extent)
    assert result["reason"] is None
    loss, found, again = result["loss"]
    assert found == again == pytest.approx(loss, rel=1e-6)
    assert result["gradient"] < 1e-5
    # The warm-up made everything: neither a step nor a pass without gradients, at any size,
    # made more. Blocks of one shape share their code.
    assert result["made"] == 1 if extent == "whole" else 0 < result["made"] < 12
    assert result["later"] == result["recompiles"] == 0
    assert result["without gradient"]
    assert result["names"]
    # What does not compile runs as it is.
    assert "no compiler found" in result["refused"]
    assert result["wrong"] == WRONG  # With inductor on this processor.
    assert result["after refusal"]


def attended() -> dict[str, tuple[float, bool]]:
    """Loss of a step by each kernel of attention, and whether it took the fused one."""
    base = load_base(BaseConfig())
    torch.manual_seed(0)
    adapter = SemanticAdapter.from_unet(base.unet, 64)
    model = AnomalyControl(base, adapter, RunConfig(data=DataConfig(resolution=64)))
    found = {}
    for kernel in get_args(Attention):
        with attention_by(kernel), profile(activities=[ProfilerActivity.CPU]) as profiler:
            loss = model(random_batch(SIZE, 64, 64)).loss
        names = {event.key for event in profiler.key_averages()}
        fused = "aten::_scaled_dot_product_flash_attention_for_cpu" in names
        found[kernel] = (loss.item(), fused)
    return found


def test_attention_tries_a_kernel_and_leaves_what_it_cannot_do_to_others(tmp_path) -> None:
    found = run_ranks(attended, 1, tmp_path)
    # This processor has the fused kernel and the plain operations, none of the other two.
    assert {kernel: fused for kernel, (_, fused) in found.items()} == {
        **dict.fromkeys(("auto", "flash", "efficient", "cudnn"), True),
        "math": False,
    }
    loss = found["auto"][0]
    assert all(value == pytest.approx(loss, rel=1e-6) for value, _ in found.values())


def test_long_runs_on_a_gpu_compile_by_default() -> None:
    def run(steps: int, **runtime: Any) -> RunConfig:
        return RunConfig(optim=OptimConfig(steps=steps), runtime=RuntimeConfig(**runtime))

    assert chosen_extent(run(1000), on_gpu=True) == "blocks"
    assert chosen_extent(run(999), on_gpu=True) is None
    assert chosen_extent(run(30_000), on_gpu=False) is None
    assert chosen_extent(run(10, compile="whole"), on_gpu=False) == "whole"
    assert chosen_extent(run(30_000, compile="off"), on_gpu=True) is None


def guided() -> dict[str, Any]:
    """C' before and after compiling ASEA's steps, in a process as `compiled`'s."""
    base = load_base(BaseConfig())
    csm = CrossModalEncoder(base.vlm, base.vlm_tokenizer, CsmConfig(), AseaConfig(steps=3))
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(SIZE + 1, 1, csm.image_px, csm.image_px)
    mask[..., 8:24, 8:24] = 1
    image = torch.randn(SIZE + 1, 3, csm.image_px, csm.image_px, generator=generator)
    words = ["a crack", "a hole", "a dark stain", "a blob", "a cut"]

    def tokens(count: int, first: int = 0) -> torch.Tensor:
        own = slice(first, first + count)
        return csm(image[own], words[own], mask[own]).tokens

    def apart(own: torch.Tensor, plain: torch.Tensor) -> float:
        return ((own - plain).norm() / plain.norm()).item()

    cases = {"full": (SIZE,), "other words": (SIZE, 1), "one": (1,), "larger": (SIZE + 1,)}
    plain = {name: tokens(*case) for name, case in cases.items()}
    refused = compile_asea(csm, SIZE, backend=broken)
    after_refusal = torch.equal(tokens(SIZE), plain["full"])
    torch._dynamo.reset()
    counters.clear()
    reason = compile_asea(csm, SIZE, backend="aot_eager")
    made = graphs()
    found = {name: apart(tokens(*case), plain[name]) for name, case in cases.items()}
    return {
        "refused": refused,
        "after refusal": after_refusal,
        "reason": reason,
        "apart": found,
        "made": made,
        "later": graphs() - made,
    }


def test_compiled_asea_is_the_plain_one(tmp_path: Path) -> None:
    """One graph for all steps, whatever the words' length; other sizes run uncompiled."""
    result = run_ranks(guided, 1, tmp_path)
    assert "no compiler found" in result["refused"] and result["after refusal"]
    assert result["reason"] is None
    assert max(result["apart"].values()) < 1e-5, result["apart"]
    assert (result["made"], result["later"]) == (1, 0)


def drawn(extent: str) -> dict[str, Any]:
    """Drawings before and after compiling, in a process as `compiled`'s."""
    pipe = load_pipeline(str(built_in_adapter()))
    pipe.set_progress_bar_config(disable=True)

    def draw(count: int, scale: float = 5.0) -> list[np.ndarray]:
        words = [f"a photo of wood with a {word}" for word in ("crack", "hole", "blob")][:count]
        text = pipe.encode_text(words)
        images = pipe.sample(
            pipe.conditions(text, pipe._without_reference(count)),
            [Image.new("RGB", (64, 64), (90, 60, 30))] * count,
            [Image.new("1", (64, 64), 1)] * count,
            num_inference_steps=3,
            guidance_scale=scale,
            generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        ).images
        return [np.asarray(image).astype(int) for image in images]

    cases = {"full": (2,), "last": (1,), "larger": (3,), "unguided": (2, 1.0)}
    plain = {name: draw(*case) for name, case in cases.items()}
    refused = compile_for_drawing(pipe.unet, pipe.warm_up, "blocks", 2, backend=broken)
    torch._dynamo.reset()
    counters.clear()
    reason = compile_for_drawing(pipe.unet, pipe.warm_up, extent, 2, backend="aot_eager")
    made = graphs()
    fast = {name: draw(*case) for name, case in cases.items()}
    apart = {name: int(np.abs(np.subtract(plain[name], fast[name])).max()) for name in cases}
    return {
        "refused": refused,
        "reason": reason,
        "apart": apart,
        "made": made,
        "later": graphs() - made,
        "recompiles": len(counters["recompiles"]) + len(counters["graph_break"]),
    }


@pytest.mark.parametrize("extent", ["blocks", pytest.param("whole", marks=pytest.mark.slow)])
def test_a_compiled_drawing_is_the_plain_one(tmp_path: Path, extent: str) -> None:
    """Full batches run compiled, made once; those of other sizes run as they did."""
    result = run_ranks(drawn, 1, tmp_path, extent)
    assert "no compiler found" in result["refused"]
    assert result["reason"] is None
    apart = result["apart"]
    assert apart.pop("full") <= 1
    assert set(apart.values()) == {0}
    assert result["made"] == (1 if extent == "whole" else 9)
    assert result["later"] == result["recompiles"] == 0


def test_compiled_code_is_kept_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch itself says, after the libraries that set it to a place of their own."""
    monkeypatch.delenv(CODE, raising=False)
    importlib.import_module("acontrol.train.worker")
    cache_dir()
    keep_compiled_code(str(tmp_path / "run"))
    assert cache_dir() == str(tmp_path / "run")
    keep_compiled_code(str(tmp_path / "another run"))
    assert cache_dir() == str(tmp_path / "run"), "set by hand, as far as it knows"
