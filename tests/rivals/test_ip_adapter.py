"""Method ip-adapter against diffusers' own IP-Adapter, on the same weights."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from PIL import Image
from torch import Tensor, nn

from acontrol.config import AdapterCard, AseaConfig, CsmConfig
from acontrol.config.sampling import Sampling
from acontrol.generation.methods import load_method
from acontrol.interop import ip_adapter
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels
from acontrol.networks.locate import built_in_adapter
from acontrol.rivals.task import Task


def image_alone(base: BaseModels, folder: Path, mode: str) -> SemanticAdapter:
    """The adapter that ships, as one of the image alone; pooled: with a pooling before it."""
    shipped = SemanticAdapter.from_pretrained(built_in_adapter(), use_safetensors=True)
    card = AdapterCard.model_validate(shipped.config.card).model_copy(
        update={"csm": CsmConfig(text=False, mode=mode), "asea": AseaConfig(steps=0)}
    )
    torch.manual_seed(4)
    made = SemanticAdapter.from_unet(
        base.unet, 64, mode=mode, card=json.loads(card.model_dump_json())
    )
    with torch.no_grad():
        made.proj.weight.copy_(shipped.proj.weight)
    made.save_pretrained(folder)
    return made


def stock_unet(base: BaseModels, adapter: SemanticAdapter, mode: str, folder: Path) -> Any:
    """A U-Net with diffusers' processors: through its loader, or set by hand."""
    unet = copy.deepcopy(base.unet)
    if mode == "pooled":
        file = folder / "adapter.safetensors"
        ip_adapter.export(adapter, file)
        pipe = StableDiffusionPipeline(
            *(base.vae, base.text_encoder, base.tokenizer, unet, base.scheduler, None, None),
            requires_safety_checker=False,
        )
        pipe.load_ip_adapter(
            str(folder), subfolder="", weight_name=file.name, image_encoder_folder=None
        )
        return pipe.unet
    # The loader has no form for tokens that need no projection.
    rows = adapter.proj.weight.detach().split([w for w in adapter.widths for _ in range(2)])
    pairs = iter(zip(rows[::2], rows[1::2], strict=True))
    processors: dict[str, Any] = {}
    for name in unet.attn_processors:
        if "attn2" not in name:
            processors[name] = AttnProcessor2_0()
            continue
        key, value = next(pairs)
        processor = IPAdapterAttnProcessor2_0(len(key), key.shape[1], num_tokens=(1,))
        processor.to_k_ip[0].weight.data = key
        processor.to_v_ip[0].weight.data = value
        processors[name] = processor
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([nn.Identity()])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    return unet


@pytest.mark.parametrize("mode", ["queries", "pooled"])
@torch.no_grad()
def test_its_noise_is_that_of_diffusers_processors(
    tiny_base: BaseModels, built_in_data: Path, tmp_path: Path, mode: str
) -> None:
    """At every step of a drawing, in both halves of guidance, on the method's own inputs."""
    adapter = image_alone(tiny_base, tmp_path / "adapter", mode)
    method = load_method("ip-adapter", str(tmp_path / "adapter")).method
    pipeline = method.pipeline  # type: ignore[attr-defined]
    calls: list[tuple[tuple[Tensor, ...], Tensor]] = []
    pipeline.unet.register_forward_hook(
        lambda unet, args, output: calls.append((args, output.sample))
    )
    wood = built_in_data / "wood"
    task = Task(
        image=np.asarray(Image.open(wood / "train/good/000.png")),
        mask=np.asarray(Image.open(wood / "ground_truth/crack/001_mask.png")) > 0,
        category="wood",
        defect="crack",
        reference_image=wood / "test/crack/000.png",
        reference_mask=wood / "ground_truth/crack/000_mask.png",
        phrase="crack",
        prompt="a photo of wood with a crack",
        seed=3,
        sampling=Sampling(steps=3, guidance_scale=5.0),
    )
    method.draw([task])
    assert len(calls) == 3
    # C' knows the picture alone, whatever the words.
    image, mask = (Image.fromarray(pixels) for pixels in task.reference())
    tokens, same = (
        pipeline.reference_tokens([image], [mask], [words]) for words in ("crack", "red spot")
    )
    assert torch.equal(tokens, same)
    stock = stock_unet(tiny_base, adapter, mode, tmp_path)
    seen = tokens if mode == "queries" else tokens.mean(dim=1)
    embeds = torch.cat([torch.zeros_like(seen), seen])[:, None]
    added = {"image_embeds": [embeds]}
    for (latents, step, text), noise in calls:
        expected = stock(latents, step, text, added_cond_kwargs=added).sample
        torch.testing.assert_close(noise, expected, rtol=0, atol=1e-5)
        plain = tiny_base.unet(latents, step, text).sample
        assert (noise - plain).abs().max() > 1e-2
