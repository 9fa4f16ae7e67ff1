"""Our pictures against stock diffusers' own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0

import acontrol
from acontrol.config import SgaConfig
from acontrol.errors import UserError
from acontrol.interop import ip_adapter
from acontrol.interop.install import image_embeds
from acontrol.networks.load import BaseModels
from tests.interop.conftest import draw_ours, draw_stock, furthest, reference, stock


def test_an_installed_adapter_draws_our_pixels(base: BaseModels, ours: Any) -> None:
    pipe = stock(base)
    acontrol.install(pipe, ours.adapter)
    drawn = draw_ours(ours)
    assert furthest(drawn, draw_stock(pipe, ours)) <= 1
    # And it is the adapter that is seen, not the base.
    without = draw_ours(ours, semantic_scale=0.0)
    assert furthest(drawn, without) > 30
    pipe.set_ip_adapter_scale(0.5)
    assert furthest(draw_ours(ours, semantic_scale=0.5), draw_stock(pipe, ours)) <= 1


@pytest.mark.parametrize("mode", ["pooled"], indirect=True)
def test_an_exported_file_draws_our_pixels(base: BaseModels, ours: Any, tmp_path: Path) -> None:
    ip_adapter.export(ours.adapter, tmp_path / "ours.safetensors")
    pipe = stock(base)
    pipe.load_ip_adapter(
        str(tmp_path), subfolder="", weight_name="ours.safetensors", image_encoder_folder=None
    )
    assert furthest(draw_ours(ours), draw_stock(pipe, ours)) <= 1


@pytest.mark.parametrize("mode", ["queries"], indirect=True)
def test_a_file_of_queries_is_refused_with_the_reason(ours: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"a projection before the attention; use acontrol\.install"
    ):
        ip_adapter.export(ours.adapter, tmp_path / "ours.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_gamma_of_the_card_is_the_scale(
    base: BaseModels, ours: Any, card: Callable[..., Any]
) -> None:
    pipe = stock(base)
    ours.adapter.register_to_config(card=card(sga=SgaConfig(scale=0.7)).model_dump(mode="json"))
    acontrol.install(pipe, ours.adapter)
    scales = [
        processor.scale
        for processor in pipe.unet.attn_processors.values()
        if isinstance(processor, IPAdapterAttnProcessor2_0)
    ]
    assert scales == [[0.7]] * 4


@pytest.mark.parametrize("mode", ["queries"], indirect=True)
def test_it_comes_out_again(base: BaseModels, ours: Any) -> None:
    pipe, untouched = stock(base), stock(base)
    acontrol.install(pipe, ours.adapter)
    with pytest.raises(ValueError, match="attention slicing would replace"):
        pipe.enable_attention_slicing()
    pipe.unload_ip_adapter()
    assert {type(processor) for processor in pipe.unet.attn_processors.values()} == {
        AttnProcessor2_0
    }
    no_adapter = {"ip_adapter_image_embeds": None}
    assert (
        furthest(
            draw_stock(pipe, ours, **no_adapter), draw_stock(untouched, ours, **no_adapter)
        )
        == 0
    )
    pipe.enable_attention_slicing()  # Nothing is lost any more.


@pytest.mark.parametrize("mode", ["queries"], indirect=True)
def test_another_architecture_is_refused(base: BaseModels, ours: Any) -> None:
    pipe = stock(base)
    layers = [*ours.adapter.config.layers]
    ours.adapter.register_to_config(layers=[layers[0], *layers[2:], layers[1]])
    with pytest.raises(ValueError, match="the adapter is for 4 layers"):
        acontrol.install(pipe, ours.adapter)


@pytest.mark.parametrize("mode", ["queries"], indirect=True)
def test_without_guidance_there_is_no_negative_half(base: BaseModels, ours: Any) -> None:
    pipe = stock(base)
    acontrol.install(pipe, ours.adapter)
    tokens = ours.reference_tokens(**reference())
    embeds = image_embeds(ours.adapter, tokens, guided=False)
    result = draw_stock(pipe, ours, guidance_scale=1.0, ip_adapter_image_embeds=embeds)
    assert furthest(draw_ours(ours, guidance_scale=1.0), result) <= 1
    assert torch.equal(embeds[0][:, 0], tokens)
    with pytest.raises(ValueError, match="one reference per call, got 2"):
        image_embeds(ours.adapter, tokens.expand(2, -1, -1))
