"""How fast are images generated, compared with diffusers' own IP-Adapter pipeline?

    python -m benchmarks.bench_generate [--batch 4] [--rounds 5] [--device cpu] [--full-size]
                                        [--compile blocks|whole]

Both take the same prompts, C' (precomputed: diffusers cannot make it), noise and weights, with
DDIM and classifier-free guidance, and the images are compared before anything is timed.
"ours, onto normal images" also keeps the pixels outside a mask; "ours, compiled" is ours after
`acontrol generate --compile` has done its work, which is not timed. Writes
benchmarks/results/DATE_generate_HARDWARE.{json,md}.
"""

import argparse
import copy
import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from PIL import Image
from torch import Tensor, nn

from acontrol.config import AdapterCard, AseaConfig, BaseConfig, CsmConfig, SgaConfig
from acontrol.config.training import Extent
from acontrol.method.sga import SemanticAdapter, cross_attention_layers
from acontrol.networks.compilation import compile_for_drawing
from acontrol.networks.load import BaseModels, load_base, quieten
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from benchmarks.full_size import random_sd15
from benchmarks.report import interleaved, write_report

PROMPT = "a photo of wood with a crack"


def stock_pipeline(
    ours: AnomalyControlPipeline, base: BaseModels, adapter: SemanticAdapter
) -> StableDiffusionPipeline:
    """Diffusers' pipeline with its own IP-Adapter attention, holding the adapter's weights."""
    unet = copy.deepcopy(base.unet)
    widths = dict(cross_attention_layers(base.unet))
    blocks = iter(adapter.proj.weight.split([w for w in adapter.widths for _ in range(2)]))
    processors: dict[str, nn.Module | AttnProcessor2_0] = {}
    for name in unet.attn_processors:
        if name not in widths:
            processors[name] = AttnProcessor2_0()
            continue
        processor = IPAdapterAttnProcessor2_0(
            widths[name], adapter.proj.in_features, num_tokens=(1,), scale=1.0
        )
        for linear in (processor.to_k_ip[0], processor.to_v_ip[0]):
            linear.weight.data = next(blocks).detach().clone()
        processors[name] = processor.to(unet.device, unet.dtype).requires_grad_(False)
    unet.set_attn_processor(processors)
    # C' is as wide as the text: nothing is projected in between.
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([nn.Identity()])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    stock = StableDiffusionPipeline(
        base.vae,
        base.text_encoder,
        base.tokenizer,
        unet,
        copy.deepcopy(ours.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    return stock


def main() -> None:
    """Check that both draw the same, then time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--full-size", action="store_true", help="SD1.5, BLIP-2, random weights"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", choices=get_args(Extent), help="by default not")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, dtype, count = arguments.device, getattr(torch, arguments.dtype), arguments.batch
    base = (
        random_sd15(device, dtype)
        if arguments.full_size
        else load_base(BaseConfig(), device, dtype)
    )
    resolution = 512 if arguments.full_size else 64
    config = base.vlm.config
    width = config.qformer_config.hidden_size
    card = AdapterCard(
        acontrol_version="0",
        base=BaseConfig(),
        base_digest="",
        csm=CsmConfig(),
        asea=AseaConfig(),
        sga=SgaConfig(),
        resolution=resolution,
        reference_view="image",
        split="train",
        data_digest="",
        seed=0,
        steps=0,
    )
    adapter = SemanticAdapter.from_unet(base.unet, width, card=card.model_dump(mode="json"))
    adapter = adapter.to(device, dtype).requires_grad_(False)
    ours = AnomalyControlPipeline.from_base(base, adapter)
    ours.set_progress_bar_config(disable=True)
    stock = stock_pipeline(ours, base, adapter)
    # One reference for all: diffusers repeats what it is given for every prompt.
    tokens = torch.randn(1, config.num_query_tokens, width).to(device, dtype)
    both = torch.cat([torch.zeros_like(tokens), tokens])[:, None]
    sampling = {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
    }
    picture = np.random.default_rng(0).integers(0, 255, (resolution, resolution, 3), np.uint8)
    inside = np.zeros((resolution, resolution), bool)
    inside[resolution // 4 : resolution // 2, resolution // 4 : resolution // 2] = True

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(count)]

    def draw_stock() -> list[Image.Image]:
        return stock(
            [PROMPT] * count,
            ip_adapter_image_embeds=[both],
            generator=generators(),
            height=resolution,
            width=resolution,
            **sampling,
        ).images

    def draw_ours(
        *places: list[Image.Image], by: AnomalyControlPipeline = ours
    ) -> list[Image.Image]:
        with torch.no_grad():
            fused: Tensor = adapter(tokens.expand(count, -1, -1))
        conditions = by.conditions(by.encode_text([PROMPT] * count), fused)
        return by.sample(conditions, *places, generator=generators(), **sampling).images

    onto = [Image.fromarray(picture)] * count, [Image.fromarray(inside)] * count
    cases: dict[str, Callable[[], list[Image.Image]]] = {
        "diffusers' IP-Adapter": draw_stock,
        "ours": draw_ours,
        "ours, onto normal images": lambda: draw_ours(*onto),
    }
    if arguments.compile:
        fast = AnomalyControlPipeline.from_base(
            dataclasses.replace(base, unet=copy.deepcopy(base.unet)), adapter
        )
        fast.set_progress_bar_config(disable=True)
        refused = compile_for_drawing(fast.unet, fast.warm_up, arguments.compile, count)
        if refused is not None:
            raise SystemExit(f"did not compile: {refused}")
        cases[f"ours, compiled {arguments.compile}"] = partial(draw_ours, by=fast)
    stocks, *own = (
        np.stack([np.asarray(image, np.int16) for image in draw()])
        for name, draw in cases.items()
        if "onto" not in name
    )
    difference = max(int(np.abs(stocks - drawn).max()) for drawn in own)
    print(f"largest difference between the pictures: {difference} of 255")
    if difference > 2:
        raise SystemExit("these are not the same pictures: nothing is timed")
    times = interleaved(cases, arguments.rounds, device)
    median_s = {name: statistics.median(seconds) for name, seconds in times.items()}
    rows = [
        {
            "pipeline": name,
            "median_s": round(value, 3),
            "images_per_s": round(count / value, 2),
            "of diffusers'": round(median_s["diffusers' IP-Adapter"] / value, 3),
            "fastest_s": round(min(times[name]), 3),
        }
        for name, value in median_s.items()
    ]
    settings = {**vars(arguments), "largest_difference": difference}
    write_report("generate", rows, settings, __doc__.splitlines()[0])


if __name__ == "__main__":
    main()
