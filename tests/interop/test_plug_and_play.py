"""The adapter together with what else people put into a pipeline."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

import acontrol
from acontrol.networks.load import BaseModels
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from tests.interop.conftest import draw_ours, draw_stock, furthest, quiet, reference, stock

pytestmark = pytest.mark.parametrize("mode", ["queries"], indirect=True)


def seen(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sets of pictures differ so that one sees it."""
    return furthest(one, other) > 20


@pytest.fixture
def lora(base: BaseModels, tmp_path: Path) -> Path:
    """A LoRA of the U-Net's attention, in diffusers' own file format."""
    unet = copy.deepcopy(base.unet)
    torch.manual_seed(9)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(unet)
    )
    return tmp_path


def test_with_a_lora(base: BaseModels, ours: Any, lora: Path) -> None:
    plain = draw_ours(ours)
    ours.load_lora_weights(str(lora), weight_name="pytorch_lora_weights.safetensors")
    with_lora = draw_ours(ours)
    assert seen(plain, with_lora)
    # Before or after the adapter, in our pipeline or a stock one: the same picture.
    pipe = stock(base)
    acontrol.install(pipe, ours.adapter)
    pipe.load_lora_weights(str(lora), weight_name="pytorch_lora_weights.safetensors")
    assert furthest(with_lora, draw_stock(pipe, ours)) <= 1
    assert seen(with_lora, draw_ours(ours, semantic_scale=0.0))
    ours.unload_lora_weights()
    assert furthest(plain, draw_ours(ours)) == 0


def test_with_a_controlnet(base: BaseModels, ours: Any) -> None:
    torch.manual_seed(11)
    # The tiny VAE divides by four, not eight: one stride less.
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32, 96))
    for name, parameter in net.named_parameters():
        if "controlnet_" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.1)  # Untrained they are zero.
    pipe = stock(base, StableDiffusionControlNetPipeline, controlnet=net.eval())
    acontrol.install(pipe, ours.adapter)
    levels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    control = {"image": [Image.fromarray(levels)] * 2}
    off = draw_stock(pipe, ours, controlnet_conditioning_scale=0.0, **control)
    assert furthest(off, draw_ours(ours)) <= 1
    on = draw_stock(pipe, ours, controlnet_conditioning_scale=1.0, **control)
    assert seen(on, off)
    pipe.set_ip_adapter_scale(0.0)
    assert seen(on, draw_stock(pipe, ours, controlnet_conditioning_scale=1.0, **control))


def test_on_another_fine_tune(base: BaseModels, ours: Any) -> None:
    tuned = dataclasses.replace(base, unet=copy.deepcopy(base.unet))
    torch.manual_seed(12)
    with torch.no_grad():
        for parameter in tuned.unet.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(0.1 * parameter.std(correction=0) * noise)
    there = quiet(AnomalyControlPipeline.from_base(tuned, ours.adapter))
    drawn = draw_ours(there)
    assert seen(drawn, draw_ours(ours))
    pipe = stock(dataclasses.replace(tuned, unet=copy.deepcopy(tuned.unet)))
    acontrol.install(pipe, ours.adapter)
    assert furthest(drawn, draw_stock(pipe, ours)) <= 1


# numpy's, of how diffusers makes an array of a tensor.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_with_another_scheduler(base: BaseModels, ours: Any, kind: Any) -> None:
    plain = draw_ours(ours)
    pipe = stock(base)
    acontrol.install(pipe, ours.adapter)
    for pipeline in (ours, pipe):
        pipeline.scheduler = kind.from_config(base.scheduler.config)
    drawn = draw_ours(ours)
    assert furthest(drawn, plain) > 1
    assert furthest(drawn, draw_stock(pipe, ours)) <= 1


def test_with_the_vaes_slicing_and_tiling(ours: Any, base: BaseModels) -> None:
    ours.vae = copy.deepcopy(base.vae)
    plain = draw_ours(ours)
    ours.vae.enable_slicing()
    assert furthest(plain, draw_ours(ours)) <= 1
    ours.vae.enable_tiling()
    ours.vae.tile_sample_min_size, ours.vae.tile_latent_min_size = 32, 8
    tiled = draw_ours(ours)
    assert tiled.shape == plain.shape
    # Norms see a tile at a time: alike, not the same.
    assert 0 < np.abs(tiled.astype(float) - plain).mean() < 16


def test_with_model_cpu_offload(ours: Any, base: BaseModels) -> None:
    for name in ("vae", "text_encoder"):  # Hooks stay: on copies.
        setattr(ours, name, copy.deepcopy(getattr(base, name)))
    plain = draw_ours(ours)
    # Without an accelerator everything goes from the CPU to the CPU; the hooks are the same.
    ours.enable_model_cpu_offload(device="cpu")
    assert {name for name, part in parts(ours) if hasattr(part, "_hf_hook")} == {
        *("text_encoder", "vlm", "adapter", "unet", "vae")
    }
    assert furthest(plain, draw_ours(ours)) == 0
    assert furthest(plain, draw_ours(ours)) == 0  # And again, from where the first left it.


def test_sequential_cpu_offload_leaves_the_vlm_whole(ours: Any, base: BaseModels) -> None:
    # No more than that: accelerate's hooks do not run with a CPU to compute on.
    for name in ("vae", "text_encoder"):
        setattr(ours, name, copy.deepcopy(getattr(base, name)))
    ours.enable_sequential_cpu_offload(device="cpu")
    away = {
        name: all(parameter.is_meta for parameter in part.parameters())
        for name, part in parts(ours)
    }
    assert away == {name: name != "vlm" for name in away}


def test_model_offload_wakes_the_vlm(
    ours: Any, base: BaseModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vae", "text_encoder"):  # Hooks stay: on copies.
        setattr(ours, name, copy.deepcopy(getattr(base, name)))
    # Its forward is never called, so no hook of accelerate's would fire by itself.
    ours.enable_model_cpu_offload(device="cpu")
    woken = []
    hook = ours.vlm._hf_hook
    monkeypatch.setattr(hook, "pre_forward", lambda module, *_: woken.append(module))
    ours.reference_tokens(**reference())
    assert woken == [ours.vlm]


def parts(pipe: Any) -> list[tuple[str, torch.nn.Module]]:
    return [
        (name, part)
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    ]


def test_with_cpu_offload_in_a_stock_pipeline(base: BaseModels, ours: Any) -> None:
    pipe = stock(
        base, vae=copy.deepcopy(base.vae), text_encoder=copy.deepcopy(base.text_encoder)
    )
    acontrol.install(pipe, ours.adapter)
    pipe.enable_model_cpu_offload(device="cpu")
    assert furthest(draw_ours(ours), draw_stock(pipe, ours)) <= 1


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The tests' type checks are no part of what a user compiles."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_compiled(ours: Any, unchecked: None, how: str) -> None:
    # Through dynamo and autograd's tracing; what inductor makes of it is its own affair (and
    # a minute's).
    plain = draw_ours(ours)
    if how == "whole":
        ours.unet = torch.compile(ours.unet, backend="aot_eager")
    else:  # As diffusers advises; our processors are in them, in one graph without a break.
        ours.unet.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    assert furthest(plain, draw_ours(ours)) <= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_compiled_by_inductor(ours: Any, unchecked: None) -> None:
    plain = draw_ours(ours)
    ours.unet = torch.compile(ours.unet)
    assert furthest(plain, draw_ours(ours)) <= 1


def test_attention_slicing_is_refused(ours: Any) -> None:
    for ask in (ours.enable_attention_slicing, ours.disable_attention_slicing):
        with pytest.raises(ValueError, match="attention slicing would replace the adapter's"):
            ask()
    # Behind the pipeline's back, too.
    ours.unet.set_attention_slice("auto")
    with pytest.raises(ValueError, match="SlicedAttnProcessor, which ignores C'"):
        draw_ours(ours)
