import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image, ImageDraw

from acontrol.config import AdapterCard, AseaConfig, CsmConfig
from acontrol.interop.install import image_embeds
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline

PROMPTS = ["a wood with a crack", "dark metal"]
STEPS = 2


@pytest.fixture(params=["queries", "pooled"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_adapter(base: BaseModels, card: Callable[..., AdapterCard]) -> Callable[..., Any]:
    def make(mode: str) -> SemanticAdapter:
        torch.manual_seed(5)
        entries = card(csm=CsmConfig(mode=mode), asea=AseaConfig(steps=1))
        made = SemanticAdapter.from_unet(
            base.unet, 64, mode=mode, card=entries.model_dump(mode="json")
        )
        torch.nn.init.normal_(made.proj.weight, std=0.3)
        return made

    return make


@pytest.fixture
def ours(base: BaseModels, make_adapter: Callable[..., Any], mode: str) -> Any:
    """Our own pipeline, on a U-Net of its own."""
    own = dataclasses.replace(base, unet=copy.deepcopy(base.unet))
    return quiet(AnomalyControlPipeline.from_base(own, make_adapter(mode)))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(
    base: BaseModels, kind: type[DiffusionPipeline] = StableDiffusionPipeline, **parts: Any
) -> Any:
    """A pipeline of diffusers itself on the tiny base."""
    scheduler = DDIMScheduler.from_config(
        base.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    made: dict[str, Any] = {
        "vae": base.vae,
        "text_encoder": base.text_encoder,
        "tokenizer": base.tokenizer,
        "unet": copy.deepcopy(base.unet),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return quiet(kind(**{**made, **parts}))


def reference() -> dict[str, list[Any]]:
    """One reference."""
    levels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = Image.new("1", (64, 64))
    ImageDraw.Draw(mask).rectangle((10, 12, 40, 31), fill=1)
    return {"image": [Image.fromarray(levels)], "mask": [mask], "phrase": ["a crack"]}


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(7), torch.Generator().manual_seed(8)]


def draw_ours(pipe: AnomalyControlPipeline, **changes: Any) -> np.ndarray:
    named = {f"reference_{name}": value * 2 for name, value in reference().items()}
    settings = {"num_inference_steps": STEPS, "generator": generators(), **changes}
    images = pipe(PROMPTS, **named, **settings).images
    return np.stack([np.asarray(image) for image in images])


def draw_stock(pipe: Any, ours: AnomalyControlPipeline, **changes: Any) -> np.ndarray:
    tokens = ours.reference_tokens(**reference())
    settings = {
        "num_inference_steps": STEPS,
        "generator": generators(),
        "height": 64,
        "width": 64,
        "guidance_scale": 7.5,
        "ip_adapter_image_embeds": image_embeds(ours.adapter, tokens),
        **changes,
    }
    return np.stack([np.asarray(image) for image in pipe(PROMPTS, **settings).images])


def furthest(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference of a pixel, in levels of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())
