import json
import shutil
from pathlib import Path

import pytest
import torch

from acontrol.config import BaseConfig
from acontrol.errors import UserError
from acontrol.networks.load import load_base
from acontrol.networks.locate import built_in_base
from acontrol.pretrain import networks as net
from acontrol.pretrain.initial import sizes_of, start_from
from acontrol.pretrain.settings import PretrainConfig, Sizes
from launch.options import parse


def test_the_sizes_of_a_base_are_read_from_it(tmp_path: Path) -> None:
    assert Sizes.model_validate(sizes_of("tiny")) == Sizes()
    sizes = Sizes(
        resolution=32,
        vae_channels=(8, 16),
        unet_channels=(16, 32, 48),
        width=32,
        vision_width=64,
        vision_layers=2,
        patch=4,
        qformer_layers=4,
        queries=5,
    )
    net.save(net.build(sizes, 0), tmp_path)
    card = {"data": "tiles", "held_out_from_denoiser": [], "trained_on": []}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert Sizes.model_validate(sizes_of(str(tmp_path))) == sizes


def test_sizes_are_given_else_the_views_else_the_inits() -> None:
    args = ["--output", "b", "--init", "tiny", "--view", "96", "--sizes.width", "32"]
    config = parse(PretrainConfig, args, prog="")
    init = {"resolution": 128, "width": 96, "patch": 16, "vae_channels": [8, 16]}
    sizes = config.resolved(init).sizes
    assert (sizes.resolution, sizes.width, sizes.patch) == (96, 32, 16)
    assert sizes.vae_channels == (8, 16) and sizes.unet_channels == Sizes().unet_channels


def test_weights_that_fit_are_copied_and_words_are_mapped() -> None:
    base = load_base(BaseConfig())
    sizes = Sizes(unet_channels=(48, 64), resolution=128)
    fresh, started = (net.build(sizes, 3, ["pitting"]) for _ in range(2))
    line = start_from(started, "tiny")
    for name, value in started.vae.state_dict().items():
        assert torch.equal(value, base.vae.state_dict()[name])
    assert torch.equal(started.unet.conv_in.weight, base.unet.conv_in.weight)
    layer = "mid_block.resnets.0.conv1.weight"
    own, before = (part.unet.state_dict()[layer] for part in (started, fresh))
    assert torch.equal(own, before), "of another shape: fresh"
    assert "fresh, for want of a fit: unet." in line and "\n" not in line
    for ours, theirs, tokenizer, old, new in (
        (
            started.text_encoder.get_input_embeddings(),
            base.text_encoder.get_input_embeddings(),
            (started.tokenizer, base.tokenizer),
            "wood</w>",
            "pitting</w>",
        ),
        (
            started.vlm.embeddings.word_embeddings,
            base.vlm.embeddings.word_embeddings,
            (started.vlm_tokenizer, base.vlm_tokenizer),
            "wood",
            "pitting",
        ),
    ):
        ids = [part.get_vocab() for part in tokenizer]
        assert torch.equal(ours.weight[ids[0][old]], theirs.weight[ids[1][old]])
        assert new in ids[0] and new not in ids[1]
    ends = [part.tokenizer.eos_token_id for part in (started, base)]
    assert ends[0] != ends[1], "or the mapping would not be tested"
    embeddings = [
        part.text_encoder.get_input_embeddings().weight for part in (started, base, fresh)
    ]
    assert torch.equal(embeddings[0][ends[0]], embeddings[1][ends[1]])
    word = started.tokenizer.get_vocab()["pitting</w>"]
    assert torch.equal(embeddings[0][word], embeddings[2][word]), "a new word: fresh"


def test_positions_of_patches_are_interpolated() -> None:
    base = load_base(BaseConfig())
    started = net.build(Sizes(resolution=128), 0)
    start_from(started, "tiny")
    name = "vision_model.embeddings.position_embedding"
    own, before = (part.vlm.state_dict()[name][0] for part in (started, base))
    assert torch.equal(own[0], before[0]), "the class token's"
    grid = own[1:].unflatten(0, (16, 16)).unflatten(1, (8, 2)).unflatten(0, (8, 2))
    means = grid.mean(dim=(1, 3)).flatten(0, 1)
    alike = torch.cosine_similarity(means, before[1:], dim=1)
    assert float(alike.min()) > 0.8


def test_another_base_is_refused(tmp_path: Path) -> None:
    shutil.copytree(built_in_base(), tmp_path / "base", ignore=shutil.ignore_patterns("card*"))
    with pytest.raises(UserError, match=r"is no base of acontrol pretrain"):
        sizes_of(str(tmp_path / "base"))
    shutil.copy(built_in_base() / "card.json", tmp_path / "base")
    (tmp_path / "base" / "unet" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        sizes_of(str(tmp_path / "base"))
