"""The stages of ``benchmarks.gpu`` that do not train: drawing, and reading features."""

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

import acontrol
from acontrol.config import AdapterCard, AseaConfig, BaseConfig, CsmConfig, SgaConfig
from acontrol.data.features import CHUNK, FeatureFolder, Features
from acontrol.interop.install import image_embeds
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.compilation import compile_for_drawing
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline, Conditions
from benchmarks.gpu_training import EXTENTS, medians

# An image of 30 guided steps with its decoding, counted layer by layer.
DRAWING_TFLOP = 50.9


def drawing(bench: Any) -> None:
    """Our pipeline against stock diffusers with the same weights in its IP-Adapter."""
    ours = _pipeline(bench)
    base, adapter, size = bench.base, ours.adapter, ours.card.resolution
    stock = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=copy.deepcopy(base.unet),
        scheduler=DDIMScheduler.from_config(ours.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    acontrol.install(stock, adapter)
    stock.set_progress_bar_config(disable=True)
    tokens = _tokens(bench)
    for count, goal, stretch in ((8, ">= 1.7", ">= 2.2"), (1, ">= 1.8", ">= 2.3")):
        conditions = _conditions(ours, tokens, count)

        def draw_ours(conditions: Conditions = conditions) -> None:
            ours.sample(conditions, num_inference_steps=_steps(bench))

        def draw_stock(text: Tensor = conditions.text, count: int = count) -> None:
            stock(
                prompt_embeds=text,
                negative_prompt_embeds=ours.encode_text([""]).expand(count, -1, -1),
                ip_adapter_image_embeds=image_embeds(adapter, tokens),
                num_inference_steps=_steps(bench),
                guidance_scale=7.5,
                height=size,
                width=size,
            )

        median_s = medians(bench, {"ours": draw_ours, "stock": draw_stock})
        per_s = count / median_s["ours"]
        if count == 8:
            mfu = bench.mfu(DRAWING_TFLOP, per_s)
            bench.row("drawing, images/s, batch 8", per_s, ">= 6.5", ">= 8.0", mfu=mfu)
        else:
            bench.row(
                "drawing, latency of one", median_s["ours"], "<= 0.32", "<= 0.25", unit="s"
            )
        speedup = median_s["stock"] / median_s["ours"]
        bench.row(f"drawing, speed-up over stock, batch {count}", speedup, goal, stretch)


def compiled(bench: Any) -> None:
    """Our pipeline at batch 8, channels last and compiled, by blocks and as a whole."""
    count, tokens = 8, _tokens(bench)
    cases: dict[str, Callable[[], object]] = {}
    for extent in (None, *EXTENTS):
        ours = _pipeline(bench)
        if extent is not None:
            ours.unet.to(memory_format=torch.channels_last)
            begun = time.monotonic()
            reason = compile_for_drawing(ours.unet, ours.warm_up, extent, count)
            if reason is not None:
                raise RuntimeError(f"did not compile: {reason}")
            bench.metadata[f"compile_s_drawing_{extent}"] = round(time.monotonic() - begun, 1)
        cases[extent or "plain"] = partial(
            ours.sample, _conditions(ours, tokens, count), num_inference_steps=_steps(bench)
        )
    median_s = medians(bench, cases)
    for extent in EXTENTS:
        per_s = count / median_s[extent]
        bench.row(
            f"drawing, compiled {extent}, channels last / plain, batch {count}",
            median_s[extent] / median_s["plain"],
            images_per_s=round(per_s, 1),
            mfu=bench.mfu(DRAWING_TFLOP, per_s),
        )


def _pipeline(bench: Any) -> AnomalyControlPipeline:
    """Ours with an untrained adapter, on a copy of the base's U-Net."""
    base = bench.base
    card = AdapterCard(
        acontrol_version=acontrol.__version__,
        base=BaseConfig(),
        base_digest="0" * 64,
        csm=CsmConfig(),
        asea=AseaConfig(),
        sga=SgaConfig(),
        resolution=64 if bench.tiny else 512,
        reference_view="image",
        split="all",
        data_digest="0" * 64,
        seed=0,
        steps=0,
    )
    adapter = SemanticAdapter.from_unet(
        base.unet, base.vlm.config.qformer_config.hidden_size, card=card.model_dump(mode="json")
    ).to(bench.device, base.unet.dtype)
    pipeline = AnomalyControlPipeline.from_base(
        dataclasses.replace(base, unet=copy.deepcopy(base.unet)), adapter
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tokens(bench: Any) -> Tensor:
    """C' of one reference, random."""
    config = bench.base.vlm.config
    shape = (1, config.num_query_tokens, config.qformer_config.hidden_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(bench.device, bench.base.unet.dtype)


def _conditions(pipeline: AnomalyControlPipeline, tokens: Tensor, count: int) -> Conditions:
    text = pipeline.encode_text(["a photo of wood with a crack"] * count)
    with torch.no_grad():
        fused = pipeline.adapter(tokens).expand(count, -1, -1)
    return pipeline.conditions(text, fused)


def _steps(bench: Any) -> int:
    return 2 if bench.tiny else 30


def loader(bench: Any) -> None:
    """How fast precomputed features are read, against how fast they are used."""
    count = CHUNK if bench.tiny else 8 * CHUNK
    side, channels = (16, 4) if bench.tiny else (64, 4)
    width = bench.base.vlm.config.qformer_config.hidden_size
    half = torch.float32 if bench.device == "cpu" else torch.bfloat16

    def made(size: int) -> Features:
        return Features(
            latent_mean=torch.randn(size, channels, side, side, dtype=half),
            latent_std=torch.rand(size, channels, side, side, dtype=half),
            latent_mask=torch.ones(size, 1, side, side),
            text=torch.randn(size, 77, width, dtype=half),
            tokens=torch.randn(size, bench.base.vlm.config.num_query_tokens, width),
            energy_before=torch.rand(size),
            energy_after=torch.rand(size),
        )

    with tempfile.TemporaryDirectory() as folder:
        keys = [f"sample-{number}" for number in range(count)]
        features = FeatureFolder(folder, {"format": "benchmark"}, keys)
        for first in range(0, count, CHUNK):
            features.write(first, made(CHUNK))
        features.read(0)
        begun = time.perf_counter()
        for number in range(count):
            features.read(number)
        capacity = count / (time.perf_counter() - begun)
    batch = bench.batches[0]
    step = bench.times.get((batch, "ours, features"))
    if step is None:
        bench.row("loader, samples/s of one process", capacity)
        return
    used = batch / step
    bench.row(
        "loader's capacity / use, one process",
        capacity / used,
        ">= 5",
        ">= 20",
        samples_per_s=round(capacity),
    )
    # Read between two steps by the rank itself, as data.loader_workers 0 does.
    waiting = used / (used + capacity)
    bench.row("data_wait share, no loader process", waiting, "<= 0.01", "<= 0.003")
