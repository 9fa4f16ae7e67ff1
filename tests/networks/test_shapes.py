import contextlib

import pytest
import torch

from acontrol.method.anomaly_map import ReferenceText
from acontrol.method.qformer import QFormerPass
from acontrol.method.sga import SemanticAdapter, cross_attention_layers
from acontrol.networks.shapes import (
    BLIP2_ITM,
    SD15,
    SD15_INPAINTING,
    Shapes,
    parameters,
    shapes_of,
)
from acontrol.train.dry_run import activation_bytes, adapter_bytes


def shapes(path: str) -> Shapes:
    result = shapes_of(path, BLIP2_ITM[0])
    assert result is not None
    return result


@pytest.fixture(scope="module")
def sd15() -> Shapes:
    return shapes(SD15[0])


def test_the_public_networks_have_their_published_sizes(sd15: Shapes) -> None:
    assert parameters(sd15.unet) == 859_520_964
    assert parameters(sd15.vae) == 83_653_863
    assert parameters(sd15.text_encoder) == 123_060_480
    # The nine-channel U-Net: five more channels into a 3 x 3 convolution to 320.
    inpainting = shapes(SD15_INPAINTING[0])
    assert parameters(inpainting.unet) == 859_520_964 + 5 * 9 * 320
    assert inpainting.unet.config.in_channels == 9
    assert all(parameter.is_meta for parameter in inpainting.unet.parameters())


@pytest.mark.parametrize("path", [SD15[0], SD15_INPAINTING[0]])
def test_the_adapter_reads_sixteen_layers(path: str) -> None:
    unet = shapes(path).unet
    layers = cross_attention_layers(unet)
    assert len(layers) == 16
    assert len(unet.attn_processors) == 32
    with torch.device("meta"):
        adapter = SemanticAdapter(layers, 768)
    assert parameters(adapter) == 19_169_280 == 2 * 768 * 12_480
    assert unet.config.cross_attention_dim == 768


def test_blip2_sees_257_tokens_and_hands_on_32(
    sd15: Shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, words, vlm = 2, 9, sd15.vlm
    # There is no autocast on the meta device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with torch.device("meta"):
        visual = vlm.vision_model(pixel_values=torch.empty(batch, 3, 224, 224))
        assert visual.last_hidden_state.shape == (batch, 257, 1408)
        ones = torch.ones(batch, words, dtype=torch.long)
        text = ReferenceText(ones, ones, ones.bool())
        walk = QFormerPass(vlm, batch, text, method="rollout", first=False)
        tokens, _ = walk.finish(visual.last_hidden_state)
    assert tokens.shape == (batch, 32, 768)
    crossing = [layer for layer in vlm.qformer.encoder.layer if layer.has_cross_attention]
    assert len(crossing) == 6  # One attention map each.
    assert len(vlm.qformer.encoder.layer) == 12
    assert len(vlm.vision_model.encoder.layers) == 39
    assert vlm.query_tokens.shape == (1, 32, 768)


def test_activations_grow_with_latents_and_shrink_with_precision(sd15: Shapes) -> None:
    full = activation_bytes(sd15.unet, 64, 77, 32, torch.float32)
    half = activation_bytes(sd15.unet, 64, 77, 32, torch.bfloat16)
    small = activation_bytes(sd15.unet, 32, 77, 32, torch.bfloat16)
    assert 0.5 * full <= half < 0.51 * full  # Attention's row sums stay in float32.
    assert 3.5 * small < half < 4 * small
    assert 0.5 * 2**30 < half < 2**30


def test_activations_are_what_autograd_keeps(base, adapter) -> None:
    # The same count on real tensors, whose attention is fused too.
    from acontrol.method.sga import install_processors

    install_processors(base.unet)
    weights = {
        parameter.untyped_storage().data_ptr()
        for parameter in (*base.unet.parameters(), *adapter.parameters())
    }
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        base.unet(
            torch.randn(1, 4, 16, 16),
            torch.ones(1),
            torch.randn(1, 77, 64),
            cross_attention_kwargs={"semantic": adapter.split(adapter(torch.randn(1, 5, 64)))},
        )
    real = sum(one.untyped_storage().nbytes() for one in kept.values())
    with torch.device("meta"):
        meta = type(base.unet).from_config(base.unet.config)
    counted = activation_bytes(meta, 16, 77, 5, torch.float32)
    assert counted == pytest.approx(real, rel=0.02)


def test_zero_splits_the_adapters_state() -> None:
    # float32 on one worker: moments 8, gradient 4, weight 4; bfloat16 adds masters.
    assert adapter_bytes(100, 0, 4, 4) == 1600
    assert adapter_bytes(100, 1, 4, 4) == 200 + 400 + 400
    assert adapter_bytes(100, 2, 4, 2) == 300 + 100 + 200
    assert adapter_bytes(100, 3, 4, 2) == 300 + 100 + 50
