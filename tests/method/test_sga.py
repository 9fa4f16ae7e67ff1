import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from safetensors.torch import load_file
from torch import Tensor

from acontrol.config import AdapterCard
from acontrol.method.sga import (
    KeyValue,
    SemanticAdapter,
    SemanticAttnProcessor,
    cross_attention_layers,
    decoupled_attention,
    install_processors,
)
from acontrol.networks.load import BaseModels

# In the order of attn_processors, which is not the order of the forward pass.
LAYERS = [
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor", 48),
    ("up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor", 48),
    ("up_blocks.1.attentions.1.transformer_blocks.0.attn2.processor", 48),
    ("mid_block.attentions.0.transformer_blocks.0.attn2.processor", 96),
]


@pytest.fixture
def qkv() -> tuple[Tensor, ...]:
    """Query, text and semantic keys and values: latent 16, text 5, semantic 4, dim 8."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, 3, tokens, 8, generator=generator).double()
        for tokens in (16, 5, 5, 4, 4)
    )


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_decoupled_attention_is_eq_5(qkv: tuple[Tensor, ...], scale: float) -> None:
    q, k, v, k_sem, v_sem = qkv
    expected = written_out(q, k, v) + scale * written_out(q, k_sem, v_sem)
    torch.testing.assert_close(
        decoupled_attention(*qkv, semantic_scale=scale), expected, rtol=0, atol=1e-13
    )


def test_zero_scale_is_the_base_model(qkv: tuple[Tensor, ...]) -> None:
    base = F.scaled_dot_product_attention(*qkv[:3])
    assert torch.equal(decoupled_attention(*qkv, semantic_scale=0.0), base)


def test_zero_keys_and_values_add_nothing(qkv: tuple[Tensor, ...]) -> None:
    base = F.scaled_dot_product_attention(*qkv[:3])
    zero = torch.zeros_like(qkv[3])
    assert torch.equal(decoupled_attention(*qkv[:3], zero, zero, semantic_scale=1.0), base)


def test_a_negative_scale_is_refused(qkv: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=r"semantic_scale must be >= 0, got -0\.5"):
        decoupled_attention(*qkv, semantic_scale=-0.5)


Run = Callable[..., Tensor]


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 12, 12, generator=generator),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 7, 64, generator=generator),
    }


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2))


def run(unet: UNet2DConditionModel, inputs: dict[str, Tensor], **extra: Any) -> Tensor:
    with torch.no_grad():
        return unet(**inputs, cross_attention_kwargs=extra or None).sample


@pytest.mark.parametrize("case", ["no kwargs", "gamma 0", "semantic None", "C' 0"])
def test_the_base_model_comes_back_bit_for_bit(
    base: BaseModels,
    tiny_base: BaseModels,
    adapter: SemanticAdapter,
    inputs: Any,
    tokens: Tensor,
    case: str,
) -> None:
    pristine = tiny_base.unet
    kinds = {type(processor) for processor in pristine.attn_processors.values()}
    assert kinds == {AttnProcessor2_0}
    install_processors(base.unet)
    with torch.no_grad():
        extra: dict[str, Any] = {
            "no kwargs": {},
            "gamma 0": {"semantic": adapter.split(adapter(tokens)), "semantic_scale": 0.0},
            "semantic None": {"semantic": None, "semantic_scale": 1.0},
            "C' 0": {
                "semantic": adapter.split(adapter(torch.zeros_like(tokens))),
                "semantic_scale": 1.0,
            },
        }[case]
    assert torch.equal(run(base.unet, inputs, **extra), run(pristine, inputs))


def test_semantic_tokens_and_their_scale_matter(
    base: BaseModels, adapter: SemanticAdapter, inputs: Any, tokens: Tensor
) -> None:
    install_processors(base.unet)
    with torch.no_grad():
        pairs = adapter.split(adapter(tokens))
    plain = run(base.unet, inputs)
    half = run(base.unet, inputs, semantic=pairs, semantic_scale=0.5)
    whole = run(base.unet, inputs, semantic=pairs, semantic_scale=1.0)
    assert (half - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert (whole - half).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    # One is the default.
    assert torch.equal(whole, run(base.unet, inputs, semantic=pairs))


@pytest.mark.parametrize("place", range(4))
def test_every_layer_reads_its_own_pair(
    base: BaseModels, adapter: SemanticAdapter, inputs: Any, tokens: Tensor, place: int
) -> None:
    # The semantic road of one layer alone, against a hook that adds it by hand.
    install_processors(base.unet)
    with torch.no_grad():
        pairs = adapter.split(adapter(tokens))
    only = [
        pair if layer == place else (torch.zeros_like(pair[0]), torch.zeros_like(pair[1]))
        for layer, pair in enumerate(pairs)
    ]
    result = run(base.unet, inputs, semantic=only, semantic_scale=0.7)
    attn = base.unet.get_submodule(LAYERS[place][0].removesuffix(".processor"))

    def heads(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    key, value = (tokens @ block.T for block in blocks_of(adapter)[place])

    def add(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        extra = written_out(heads(attn.to_q(args[0])), heads(key), heads(value))
        return output + 0.7 * extra.transpose(1, 2).flatten(2) @ attn.to_out[0].weight.T

    handle = attn.register_forward_hook(add)
    expected = run(base.unet, inputs)
    handle.remove()
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert (result - run(base.unet, inputs)).abs().max() > 1e-3


def blocks_of(adapter: SemanticAdapter) -> list[KeyValue]:
    """Rows of the fused matrix: W'_k then W'_v of each layer, by hand."""
    blocks, row = [], 0
    for _, width in LAYERS:
        rows = adapter.proj.weight.detach()
        blocks.append((rows[row : row + width], rows[row + width : row + 2 * width]))
        row += 2 * width
    assert row == len(rows) == 480
    return blocks


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_the_processor_is_ip_adapters(
    base: BaseModels, adapter: SemanticAdapter, tokens: Tensor, place: int, scale: float
) -> None:
    name, width = LAYERS[place]
    attn = base.unet.get_submodule(name.removesuffix(".processor"))
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, 9, width, generator=generator)
    text = torch.randn(2, 7, 64, generator=generator)
    theirs = IPAdapterAttnProcessor2_0(width, 64, num_tokens=(5,), scale=scale)
    with torch.no_grad():
        key, value = blocks_of(adapter)[place]
        theirs.to_k_ip[0].weight.copy_(key)
        theirs.to_v_ip[0].weight.copy_(value)
        expected = theirs(attn, hidden, (text, [tokens]))
        result = SemanticAttnProcessor(place)(
            attn,
            hidden,
            text,
            semantic=adapter.split(adapter(tokens)),
            semantic_scale=scale,
        )
        plain = AttnProcessor2_0()(attn, hidden, text)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert (result - plain).abs().max() > 1e-2


def test_a_negative_scale_is_refused_by_the_unet(
    base: BaseModels, adapter: SemanticAdapter, inputs: Any, tokens: Tensor
) -> None:
    install_processors(base.unet)
    pairs = adapter.split(adapter(tokens))
    with pytest.raises(ValueError, match="semantic_scale"):
        run(base.unet, inputs, semantic=pairs, semantic_scale=-1.0)


def test_processors_are_installed_on_every_layer(base: BaseModels) -> None:
    install_processors(base.unet)
    places = {name: processor.layer for name, processor in base.unet.attn_processors.items()}
    assert [name for name, place in places.items() if place is not None] == [
        name for name, _ in LAYERS
    ]
    assert [place for place in places.values() if place is not None] == [0, 1, 2, 3]
    assert len(places) == 8


def test_a_layer_with_inner_norms_is_refused(base: BaseModels) -> None:
    attn = base.unet.get_submodule(LAYERS[1][0].removesuffix(".processor"))
    attn.norm_q = torch.nn.LayerNorm(12)
    with pytest.raises(ValueError, match=r"up_blocks\.1\.attentions\.0.*inner norms"):
        install_processors(base.unet)


def test_layers_are_named_in_order(base: BaseModels) -> None:
    assert cross_attention_layers(base.unet) == LAYERS


def test_from_unet_copies_the_text_projections_block_by_block(base: BaseModels) -> None:
    adapter = SemanticAdapter.from_unet(base.unet, 64)
    for (name, _), (key, value) in zip(LAYERS, blocks_of(adapter), strict=True):
        attn = base.unet.get_submodule(name.removesuffix(".processor"))
        assert torch.equal(key, attn.to_k.weight)
        assert torch.equal(value, attn.to_v.weight)
    assert adapter.proj.bias is None
    assert adapter.proj.weight.requires_grad
    # Copies, not the same memory: training must leave the base alone.
    before = attn.to_v.weight.clone()
    adapter.proj.weight.data.zero_()
    assert torch.equal(attn.to_v.weight, before)


def test_only_the_projection_is_trained(base: BaseModels) -> None:
    adapter = SemanticAdapter.from_unet(base.unet, 64)
    assert {name: parameter.numel() for name, parameter in adapter.named_parameters()} == {
        "proj.weight": 64 * 2 * (48 + 48 + 48 + 96)
    }


def test_sd15_has_the_papers_number_of_weights() -> None:
    # design.md, decision 1: 16 layers of 320, 640 and 1280, on the meta device.
    widths = [320] * 5 + [640] * 5 + [1280] * 6
    with torch.device("meta"):
        adapter = SemanticAdapter([(f"layer {n}", w) for n, w in enumerate(widths)], 768)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 19_169_280


@pytest.mark.parametrize("width", [32, 96])
def test_another_width_than_the_texts_is_refused(base: BaseModels, width: int) -> None:
    with pytest.raises(ValueError, match=f"C' is {width} wide and the U-Net's text 64"):
        SemanticAdapter.from_unet(base.unet, width)


def test_split_gives_views_in_the_order_of_layers(
    adapter: SemanticAdapter, tokens: Tensor
) -> None:
    fused = adapter(tokens).detach()
    assert fused.shape == (2, 5, 480)
    pairs = adapter.split(fused)
    assert [key.shape[-1] for key, _ in pairs] == [width for _, width in LAYERS]
    for (key, value), (w_key, w_value) in zip(pairs, blocks_of(adapter), strict=True):
        torch.testing.assert_close(key, tokens @ w_key.T, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(value, tokens @ w_value.T, rtol=1e-5, atol=1e-5)
        assert key.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    assert torch.equal(torch.cat([part for pair in pairs for part in pair], dim=-1), fused)


def test_pooled_tokens_are_four(base: BaseModels, tokens: Tensor) -> None:
    torch.manual_seed(0)
    adapter = SemanticAdapter.from_unet(base.unet, 64, mode="pooled")
    assert adapter.pool is not None
    pooled = adapter.pool(tokens)
    assert pooled.shape == (2, 4, 64)
    mean = tokens.mean(dim=1)
    hidden = mean @ adapter.pool.hidden.weight.T + adapter.pool.hidden.bias
    assert hidden.shape == (2, 1024)
    flat = hidden @ adapter.pool.tokens.weight.T + adapter.pool.tokens.bias
    expected = F.layer_norm(flat.reshape(2, 4, 64), (64,))
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    fused = adapter(tokens)
    assert fused.shape == (2, 4, 480)
    torch.testing.assert_close(fused, pooled @ adapter.proj.weight.T)
    # The order of the queries is lost, and zero tokens still say something.
    torch.testing.assert_close(adapter(tokens.flip(1)), fused, rtol=1e-4, atol=1e-5)
    assert adapter(torch.zeros_like(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["queries", "pooled"])
def test_an_adapter_survives_its_folder(
    tmp_path: Path,
    base: BaseModels,
    card: Callable[..., AdapterCard],
    tokens: Tensor,
    mode: str,
) -> None:
    torch.manual_seed(1)
    made = SemanticAdapter.from_unet(
        base.unet, 64, mode=mode, card=card().model_dump(mode="json")
    )
    torch.nn.init.normal_(made.proj.weight)
    made.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    back = SemanticAdapter.from_pretrained(tmp_path)
    assert type(back) is SemanticAdapter
    assert back.config.mode == mode
    assert AdapterCard.model_validate(back.config.card) == card()
    # The layers' order carries meaning; JSON must not sort it.
    assert [tuple(layer) for layer in back.config.layers] == LAYERS
    assert [
        tuple(layer) for layer in json.loads((tmp_path / "config.json").read_text())["layers"]
    ] == LAYERS
    assert back.widths == made.widths == (48, 48, 48, 96)
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == made.state_dict().keys()
    for name, value in made.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    with torch.no_grad():
        assert torch.equal(back(tokens), made(tokens))


def test_pickled_weights_are_not_loaded(tmp_path: Path, adapter: SemanticAdapter) -> None:
    adapter.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(adapter.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        SemanticAdapter.from_pretrained(tmp_path, use_safetensors=True)
