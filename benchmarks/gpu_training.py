"""The stages of ``benchmarks.gpu`` that train: each adds rows to the table."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from acontrol.config import (
    AseaConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    RuntimeConfig,
    ZeroConfig,
)
from acontrol.method import asea
from acontrol.method.anomaly_map import region_on_grid
from acontrol.method.model import AnomalyControl
from acontrol.method.qformer import QFormerPass
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.compilation import Extent
from acontrol.networks.load import BaseModels
from benchmarks.bench_step import Bench as StepBench
from benchmarks.bench_step import random_batch
from benchmarks.full_size import check_spreads, spreads
from benchmarks.report import interleaved

# A sample of training on precomputed features, counted layer by layer.
TRAINING_TFLOP = 1.67
LOW = torch.bfloat16
EXTENTS: tuple[Extent, ...] = ("blocks", "whole")
PER_STAGE = 0.25  # At most, of the time left, for one set of cases.


def medians(bench: Any, cases: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each case, in as many rounds as there is time for."""
    begun = time.monotonic()
    for case in cases.values():  # Warm-up, and the length of a round.
        case()
    if bench.device == "cuda":
        torch.cuda.synchronize()
    round_s = max(time.monotonic() - begun, 1e-3)
    rounds = min(bench.rounds, max(3, int(PER_STAGE * bench.left_s / round_s)))
    times = interleaved(cases, rounds, bench.device)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def config_of(device: str, batch: int, *, tiny: bool) -> RunConfig:
    """A run's configuration, in the precision that suits the device."""
    precision = "float32" if device == "cpu" else "bfloat16"
    return RunConfig(
        data=DataConfig(resolution=64 if tiny else 512),
        optim=OptimConfig(batch_size=batch),
        runtime=RuntimeConfig(precision=precision),
        zero=ZeroConfig(stage=1),
    )


def _steps(bench: Any, batch: int) -> StepBench:
    samples = random_batch(batch, *((64, 64) if bench.tiny else (512, 224)))
    return StepBench(
        bench.base, samples, config_of(bench.device, batch, tiny=bench.tiny), bench.device
    )


def sanity(bench: Any) -> None:
    """Activations like a trained network's, and the card's rate on a large product of them.

    Raises:
        ValueError: If activations are zero or not finite: nothing after it would mean much.
    """
    found = spreads(bench.base, 8 if bench.tiny else 64)
    bench.metadata["standard_deviations"] = {
        name: round(value, 3) for name, value in found.items()
    }
    if not bench.tiny:  # The built-in base is trained.
        check_spreads(found)
    side = 512 if bench.tiny else 8192
    dtype = bench.base.unet.dtype
    one, other = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    seconds = medians(bench, {"product": lambda: one @ other})["product"]
    bench.reached_tflop_s = 2 * side**3 / 1e12 / seconds
    bench.row("a large product", bench.reached_tflop_s, unit="TFLOP/s")


def numerics(bench: Any) -> None:
    """Low precision against float32, with the same weights: relative errors.

    Raises:
        ValueError: If one is not finite.
    """
    batch = 2
    config = config_of(bench.device, batch, tiny=bench.tiny)
    low = bench.base if bench.base.unet.dtype == LOW else _cast(bench.base, LOW)
    samples = random_batch(batch, *((64, 64) if bench.tiny else (512, 224)))
    torch.manual_seed(0)
    adapter = SemanticAdapter.from_unet(
        bench.base.unet, bench.base.vlm.config.qformer_config.hidden_size
    ).to(bench.device)
    values: dict[str, dict[str, Tensor]] = {}
    for name, base in (("low", low), ("float32", _cast(low, torch.float32))):
        own = copy.deepcopy(adapter).to(base.unet.dtype)
        model = AnomalyControl(base, own, config)
        features = model.encoder(samples)
        losses = model(samples, lambda tokens, own=own: own(tokens.to(own.dtype)))
        losses.loss.backward()
        assert own.proj.weight.grad is not None
        values[name] = {
            "latents": features.latent_mean.float(),
            "text": features.text.float(),
            "C'": features.tokens.float(),
            "loss": losses.per_sample.float(),
            "gradient": own.proj.weight.grad.float(),
        }
    for part, exact in values["float32"].items():
        error = (values["low"][part] - exact).norm() / exact.norm()
        if not error.isfinite():
            raise ValueError(f"{part} is zero or not finite: its error is {float(error)}")
        bench.row(f"error of {part} against float32", float(error), "<= 0.05")


def _cast(base: BaseModels, dtype: torch.dtype) -> BaseModels:
    """A copy in another precision; the Q-Former is in float32 in both."""
    names = ("vae", "text_encoder", "unet", "vlm")
    parts = {name: copy.deepcopy(getattr(base, name)).to(dtype) for name in names}
    for part in (parts["vlm"].qformer, parts["vlm"].embeddings):
        part.float()
    parts["vlm"].query_tokens.data = parts["vlm"].query_tokens.data.float()
    return dataclasses.replace(base, **parts)


def training(bench: Any, batch: int) -> None:
    """A step of our variants and of the public trainer."""
    steps = _steps(bench, batch)
    cases, dropout = steps.cases(), steps.config.dropout
    losses = {name: float(step()) for name, step in cases.items()}
    bench.metadata[f"losses_b{batch}"] = {name: round(loss, 5) for name, loss in losses.items()}
    median_s = medians(bench, cases)
    for name, value in median_s.items():
        bench.times[batch, name] = value
    bench.metadata[f"step_ms_b{batch}"] = {
        name: round(1000 * value, 2) for name, value in median_s.items()
    }
    ours, tuned, online = median_s["ours, features"], median_s["P1t"], median_s["ours, online"]
    large = batch == bench.batches[0]
    goal, stretch = ("<= 0.65", "<= 0.50") if large else ("<= 0.60", "<= 0.45")
    # A batch is as large with runtime.skip_dropped, and stands for more samples.
    kept = 1 - dropout.semantic - dropout.both
    bench.row(
        f"step / P1t, batch {batch}",
        kept * ours / tuned,
        goal,
        stretch,
        without_elision=round(ours / tuned, 3),
    )
    if not large:
        return
    per_s = batch / ours
    mfu = bench.mfu(TRAINING_TFLOP, per_s)
    bench.row("images/s, no elision", per_s, ">= 160", ">= 200", mfu=mfu)
    bench.row("images/s, nominal, with elision", per_s / kept, ">= 178", ">= 222")
    bench.row("online / P0", online / median_s["P0"], "<= 0.60", "<= 0.45")
    bench.row("cached / own online", ours / online, "<= 0.55", "<= 0.50")
    bench.row("cached / P0", ours / median_s["P0"], "<= 0.33", "<= 0.22")
    bench.row(
        "DeepSpeed's engine / bare loop (no Ray)",
        median_s["ours, features, DeepSpeed"] / ours,
        "<= 1.01",
        "<= 1.003",
    )


def profile(bench: Any) -> None:
    """Peak memory of a step, and where its time goes."""
    batch = bench.batches[0]
    step = _steps(bench, batch).ours(features=True)
    step()
    if bench.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() / 1e9
        bench.row(f"peak memory, batch {batch}", peak, "<= 60", "<= 45", unit="GB")
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as trace:
        step()
    on = "self_device_time_total" if bench.device == "cuda" else "self_cpu_time_total"
    events = sorted(trace.key_averages(), key=lambda event: -getattr(event, on))
    total = sum(getattr(event, on) for event in events) or 1
    bench.metadata["profile"] = [
        {
            "what": event.key[:90],
            "ms": round(getattr(event, on) / 1000, 2),
            "share": round(getattr(event, on) / total, 3),
            "calls": event.count,
        }
        for event in events[:20]
    ]


def asea_overhead(bench: Any) -> None:
    """A step with the Q-Former and ASEA inside, from e_v, at T_g 3 and 0."""
    goals = {bench.batches[0]: ("<= 0.08", "<= 0.06"), bench.batches[1]: ("<= 0.12", "<= 0.08")}
    for batch, (goal, stretch) in goals.items():
        steps = _steps(bench, batch)
        semantics = steps.model.encoder.semantics
        visual = semantics.embed_image(steps.batch.reference_image)
        text = semantics.read(steps.batch.reference_phrase)
        region = region_on_grid(steps.batch.reference_mask.to(bench.device), semantics.grid)
        plain = steps.ours(features=True)

        def with_asea(
            settings: AseaConfig,
            solve: asea.Solver | None = None,
            visual: Tensor = visual,
            text: Any = text,
            region: Tensor = region,
            plain: Callable[[], Any] = plain,
        ) -> None:
            with torch.no_grad():
                first = settings.solver == "first"
                walk = QFormerPass(
                    bench.base.vlm, len(visual), text, method=settings.map, first=first
                )
                embedding, _ = asea.guide(walk, visual, region, settings, solve)
                walk.finish(embedding)
            plain()

        settings = {
            "none": AseaConfig(steps=0),
            "all": AseaConfig(steps=3),
            "first": AseaConfig(steps=3, solver="first"),
        }
        cases = {name: partial(with_asea, config) for name, config in settings.items()}
        fast = torch.compile(asea.solver_of(settings["all"]), dynamic=False, fullgraph=True)
        cases["compiled"] = partial(with_asea, settings["all"], fast)
        begun = time.monotonic()
        cases["compiled"]()
        bench.metadata[f"compile_s_asea_b{batch}"] = round(time.monotonic() - begun, 1)
        median_s = medians(bench, cases)
        metric = f"ASEA, t(T_g 3) / t(0) - 1, batch {batch}"
        bench.row(
            f"{metric}: all layers", median_s["all"] / median_s["none"] - 1, goal, stretch
        )
        bench.row(
            f"{metric}: all layers, compiled",
            median_s["compiled"] / median_s["none"] - 1,
            goal,
            stretch,
        )
        bench.row(
            f"{metric}: first layer's closed form",
            median_s["first"] / median_s["none"] - 1,
            "<= 0.01",
            "<= 0.003",
        )


def compiled(bench: Any) -> None:
    """The step on features, channels last and compiled, by blocks and as a whole."""
    for batch in bench.batches:
        if not bench.tiny and bench.left_s < 60:
            return
        cases = {"plain": _steps(bench, batch).ours(features=True)}
        for extent in EXTENTS:
            steps = _steps(bench, batch)  # Its own copy: compiling changes the U-Net.
            unet = copy.deepcopy(bench.base.unet).to(memory_format=torch.channels_last)
            steps.base = dataclasses.replace(steps.base, unet=unet)
            begun = time.monotonic()
            cases[extent] = steps.ours(features=True, extent=extent)
            cases[extent]()
            bench.metadata[f"compile_s_{extent}_b{batch}"] = round(time.monotonic() - begun, 1)
        median_s = medians(bench, cases)
        for extent in EXTENTS:
            ratio = median_s[extent] / median_s["plain"]
            bench.row(f"compiled {extent}, channels last / plain, batch {batch}", ratio)
            tuned = bench.times.get((batch, "P1t"))
            if tuned is not None:
                per_s = batch / median_s[extent]
                bench.row(
                    f"compiled {extent} / P1t, batch {batch}",
                    median_s[extent] / tuned,
                    images_per_s=round(per_s, 1),
                    mfu=bench.mfu(TRAINING_TFLOP, per_s),
                )
