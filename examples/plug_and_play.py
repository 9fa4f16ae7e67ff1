"""The adapter combined with LoRA, ControlNet and others, on one sheet.

    python examples/plug_and_play.py [--out plug_and_play.png] [--steps 30]

Draws the same two requests on the built-in base, offline and on a CPU: with the adapter alone
in our pipeline and in diffusers' own, then with a LoRA, a ControlNet, a fine-tuned U-Net,
another scheduler, the VAE in slices and tiles, and CPU offload. LoRA, ControlNet and fine-tune
are random, since none exist for this base: the point is that both sides have an effect.
"""

import argparse
import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

import acontrol
from acontrol.data.builtin import Specimen, draw
from acontrol.data.prompts import target_text
from acontrol.interop.install import image_embeds
from acontrol.networks.load import BaseModels, quieten
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.reporting import contact_sheet, tinted

ADAPTER = Path(acontrol.__file__).parent / "assets" / "tiny-adapter"
REFERENCES = [draw("wood", "stain", seed=3), draw("metal", "crack", seed=5)]
PRODUCTS = ["tile", "leather"]
SIDE = 64


def with_ours(
    pipe: AnomalyControlPipeline, reference: Specimen, product: str, steps: int
) -> Image:
    """Our pipeline's image, from prompt and reference alone."""
    return pipe(
        [target_text(product, reference.phrase)],
        [Image.fromarray(reference.image)],
        [Image.fromarray(reference.mask)],
        [reference.phrase],
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(1)],
    ).images[0]


def with_stock(
    pipe: Any,
    ours: AnomalyControlPipeline,
    reference: Specimen,
    product: str,
    steps: int,
    **more: Any,
) -> Image:
    """The image of a diffusers pipeline that has the adapter installed."""
    tokens = ours.reference_tokens(
        [Image.fromarray(reference.image)],
        [Image.fromarray(reference.mask)],
        [reference.phrase],
    )
    return pipe(
        [target_text(product, reference.phrase)],
        ip_adapter_image_embeds=image_embeds(ours.adapter, tokens),
        num_inference_steps=steps,
        guidance_scale=4.0,
        height=SIDE,
        width=SIDE,
        generator=torch.Generator().manual_seed(1),
        **more,
    ).images[0]


def stock(
    base: BaseModels, adapter: Any, pipeline_class: Any = StableDiffusionPipeline, **more: Any
) -> Any:
    """A diffusers pipeline on the built-in base with the adapter installed."""
    scheduler = DDIMScheduler.from_config(
        base.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    pipe = pipeline_class(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=copy.deepcopy(base.unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **more,
    )
    pipe.set_progress_bar_config(disable=True)
    acontrol.install(pipe, adapter)
    return pipe


def random_lora(base: BaseModels, folder: str) -> None:
    """Write a LoRA file with a visible effect."""
    unet = copy.deepcopy(base.unet)
    torch.manual_seed(2)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.15)
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)


def random_controlnet(base: BaseModels) -> ControlNetModel:
    """A ControlNet with a visible effect; the tiny VAE downsamples by four."""
    torch.manual_seed(3)
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32, 96))
    for name, weight in net.named_parameters():
        if "controlnet_" in name and name.endswith("weight"):
            torch.nn.init.normal_(weight, std=0.06)
    return net.eval()


def fine_tuned(base: BaseModels) -> BaseModels:
    """The base with noise on every weight of its U-Net."""
    tuned = dataclasses.replace(base, unet=copy.deepcopy(base.unet))
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in tuned.unet.parameters():
            weight.add_(0.15 * weight.std(correction=0) * torch.randn_like(weight))
    return tuned


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("plug_and_play.png"))
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    quieten()
    ours = acontrol.load_pipeline(str(ADAPTER))
    ours.set_progress_bar_config(disable=True)
    adapter = ours.adapter
    base = BaseModels(
        ours.vae,
        ours.text_encoder,
        ours.tokenizer,
        copy.deepcopy(ours.unet),
        ours.scheduler,
        ours.vlm,
        ours.vlm_tokenizer,
    )

    def own(name: str) -> Any:
        pipe = AnomalyControlPipeline.from_base(
            dataclasses.replace(
                base, **{part: copy.deepcopy(getattr(base, part)) for part in ("vae", "unet")}
            ),
            adapter,
        )
        pipe.set_progress_bar_config(disable=True)
        if name == "another scheduler (Euler)":
            pipe.scheduler = EulerDiscreteScheduler.from_config(base.scheduler.config)
        elif name == "VAE in slices and tiles":
            pipe.vae.enable_slicing()
            pipe.vae.enable_tiling()
            pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 8
        elif name == "CPU offload":
            pipe.enable_model_cpu_offload(device="cpu")
        return pipe

    rows, captions = [], []
    references = [tinted(Image.fromarray(r.image), Image.fromarray(r.mask)) for r in REFERENCES]

    def row(name: str, pictures: list[Image.Image]) -> None:
        rows.append([references[0], pictures[0], references[1], pictures[1]])
        captions.append(name)
        print(name, flush=True)

    def each(draw_one: Any) -> list[Image.Image]:
        pairs = zip(REFERENCES, PRODUCTS, strict=True)
        return [draw_one(reference, product) for reference, product in pairs]

    plain = own("")
    row("our pipeline", each(lambda s, p: with_ours(plain, s, p, args.steps)))
    pipe = stock(base, adapter)
    row("stock diffusers", each(lambda s, p: with_stock(pipe, plain, s, p, args.steps)))
    pipe.set_ip_adapter_scale(0.0)
    row(
        "stock, gamma 0: the base alone",
        each(lambda s, p: with_stock(pipe, plain, s, p, args.steps)),
    )
    with tempfile.TemporaryDirectory() as folder:
        random_lora(base, folder)
        pipe = stock(base, adapter)
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    row("with a LoRA", each(lambda s, p: with_stock(pipe, plain, s, p, args.steps)))
    pipe = stock(
        base, adapter, StableDiffusionControlNetPipeline, controlnet=random_controlnet(base)
    )
    edges = Image.fromarray(draw("button", "good", seed=1).image)
    row(
        "with a ControlNet",
        each(lambda s, p: with_stock(pipe, plain, s, p, args.steps, image=edges)),
    )
    pipe = stock(fine_tuned(base), adapter)
    row("on a fine-tune", each(lambda s, p: with_stock(pipe, plain, s, p, args.steps)))
    for name in ("another scheduler (Euler)", "VAE in slices and tiles", "CPU offload"):
        pipe = own(name)
        row(name, each(lambda s, p, pipe=pipe: with_ours(pipe, s, p, args.steps)))
    titles = [f"reference: {REFERENCES[0].phrase}", PRODUCTS[0]]
    titles += [f"reference: {REFERENCES[1].phrase}", PRODUCTS[1]]
    contact_sheet(rows, titles, captions, cell_px=128).save(args.out)
    print(f"Sheet: {args.out}")


if __name__ == "__main__":
    main()
