"""AnomalyDiffusion's embeddings: learned from masks, read in place of words, raised."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import load_file

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.generation.settings import MethodName
from acontrol.method.encoder import embed_text
from acontrol.networks.load import BaseModels
from acontrol.pipelines.blending import Canvas
from acontrol.rivals.anodiff import (
    AnomalyEmbedding,
    _RaisedAttention,
    _Weights,
    raised,
    types_of,
)
from acontrol.rivals.objective import DefectObjective, TrainingImages
from acontrol.rivals.settings import Fit
from launch import fit, generate
from tests.rivals.conftest import lines_of, options, pixels


def test_it_begins_as_the_captions_words(tiny_base: BaseModels, built_in_data: Path) -> None:
    types = types_of(open_folder(built_in_data).labelled("train"))
    assert list(types)[:2] == ["button/crack", "button/spots"]
    caption = types["wood/stain"]
    count = len(tiny_base.tokenizer(caption, add_special_tokens=False).input_ids)
    embedding = AnomalyEmbedding.of_captions(tiny_base, [caption], count, seed=0)
    masks = torch.zeros(2, 1, 64, 64)
    masks[1, :, 10:30, 5:20] = 1
    with torch.no_grad():
        text = embedding.conditions(tiny_base, [0, 0], masks)
        words = embed_text(tiny_base.text_encoder, tiny_base.tokenizer, [caption])
        torch.testing.assert_close(text, words.expand_as(text))
        torch.nn.init.normal_(embedding.encoder[-1].weight, std=0.1)
        one, other = embedding.conditions(tiny_base, [0, 0], masks)
    assert torch.equal(one[:-4], other[:-4])
    assert (one[-4:] - other[-4:]).abs().max() > 1e-2
    with pytest.raises(UserError, match="--vectors 80: the base reads 71 at most"):
        AnomalyEmbedding.of_captions(tiny_base, [caption], 80, seed=0)


def test_it_learns_the_inside_of_the_mask_alone(base: BaseModels, built_in_data: Path) -> None:
    images = open_folder(built_in_data).labelled("train", category="wood", defect="stain")
    encoded = TrainingImages(base, images, 0, 64)
    objective = DefectObjective(encoded, Fit(method="anodiff", loss_weighting="none"))
    loss = objective(range(4)).detach()
    # The prediction outside does not count: a hook spoils it.
    region = encoded.region[objective.numbers(range(4))]
    handle = base.unet.register_forward_hook(
        lambda unet, args, output: type(output)(sample=output.sample + 5 * (1 - region))
    )
    assert torch.equal(objective(range(4)).detach(), loss)
    handle.remove()
    base.unet.register_forward_hook(
        lambda unet, args, output: type(output)(sample=output.sample + 5 * region)
    )
    assert objective(range(4)).detach() > loss + 1


def test_attention_is_raised_where_the_drawing_is_still_normal(base: BaseModels) -> None:
    normal, mask = torch.zeros(1, 4, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, 1:4] = 1
    clean = normal + mask
    clean[..., 1, 1] = 0.2  # Of six cells the one that has changed least.
    factors = raised(clean, Canvas(normal, mask))
    assert factors is not None
    assert factors[0, 0, 1, 1] == 1.5
    assert (factors.flatten() > 1).sum() == 1
    assert raised(clean, Canvas()) is None
    # In the attention: the logits of the anomaly's tokens, in the conditioned half.
    attn = base.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    torch.manual_seed(0)
    hidden, text = torch.randn(2, 16, 96), torch.randn(2, 77, 64)
    weights = _Weights(vectors=3)
    process, plain = _RaisedAttention(weights), AttnProcessor2_0()(attn, hidden, text)
    with torch.no_grad():
        assert torch.equal(process(attn, hidden, text), plain)
        weights.map = torch.ones(1, 1, 4, 4)
        torch.testing.assert_close(process(attn, hidden, text), plain, rtol=0, atol=1e-5)
        weights.map = factors
        got = process(attn, hidden, text)
        torch.testing.assert_close(got[0], plain[0], rtol=0, atol=1e-5)
        moved = (got[1] - plain[1]).abs().amax(dim=-1) > 1e-3
        assert moved.nonzero().flatten().tolist() == [5]  # Row 1, column 1.

        def heads(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unflatten(-1, (attn.heads, -1)).transpose(0, 1)

        q, k, v = attn.to_q(hidden[1, 5:6]), attn.to_k(text[1]), attn.to_v(text[1])
        logits = heads(q) @ heads(k).mT / (96 / attn.heads) ** 0.5
        logits[..., [1, 2, 3, 73, 74, 75, 76]] *= 1.5
        read = logits.softmax(dim=-1) @ heads(v)
        expected = attn.to_out[0](read.transpose(0, 1).flatten(1))
        torch.testing.assert_close(got[1, 5:6], expected, rtol=0, atol=1e-5)


def test_it_is_fitted_and_draws_the_plan_of_every_method(
    drawn: dict[MethodName, Path], built_in_data: Path, database: str, tmp_path: Path
) -> None:
    folder, out = tmp_path / "embeddings", tmp_path / "out"
    args = [built_in_data, "--method", "anodiff", "--output", folder, "--steps", 2]
    args += ["--batch-size", 2, "--tracking-uri", database]
    fit.run([str(one) for one in args])
    weights = load_file(folder / "anodiff.safetensors")
    assert weights["start"].shape == (6, 8, 64)
    assert weights["moved"].abs().max() > 0
    assert weights["encoder.7.weight"].abs().max() > 0
    assert json.loads((folder / "fitted.json").read_text())["types"][0] == "button/crack"
    generate.run(options("anodiff", built_in_data, out, "--fitted", folder))
    for line, own in zip(lines_of(out), lines_of(drawn["acontrol"]), strict=True):
        assert line["method"] == "anodiff"
        for name in ("normal", "reference", "mask_origin", "first_seed"):
            assert line[name] == own[name]
        image, normal = pixels(out / line["image"]), pixels(built_in_data / line["normal"])
        mask = pixels(out / line["mask"]) > 0
        assert np.array_equal(image[~mask], normal[~mask])
        assert not np.array_equal(image[mask], normal[mask])
    with pytest.raises(UserError, match="is of --method anodiff, not lora"):
        generate.run(options("lora", built_in_data, tmp_path / "x", "--fitted", folder))
