"""Textual inversion on the frozen base: training and drawing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.masks.inversion import MaskObjective, MaskWords, draw_masks, embed_vectors
from acontrol.method.encoder import embed_text

CAPTION = "a photo of wood with a crack"


@pytest.fixture(scope="module")
def objective(tiny_base, built_in_data: Path) -> MaskObjective:
    images = open_folder(built_in_data).labelled("all", category="wood", defect="crack")
    masks = {image.id: image.read_mask() for image in images}
    return MaskObjective(tiny_base, masks, pool=12, seed=0)


def test_a_captions_own_embeddings_encode_as_the_caption(tiny_base) -> None:
    ids = tiny_base.tokenizer(CAPTION, add_special_tokens=False).input_ids
    vectors = MaskWords.of_caption(tiny_base, CAPTION, len(ids)).vectors
    encoder = (tiny_base.text_encoder, tiny_base.tokenizer)
    states, words = embed_vectors(*encoder, vectors), embed_text(*encoder, [CAPTION])
    torch.testing.assert_close(states, words)
    moved = embed_vectors(*encoder, vectors + 0.1)
    assert not torch.allclose(moved, words)
    assert torch.equal(embed_text(*encoder, [CAPTION]), words), "the encoder has changed"


def test_a_caption_is_repeated_until_there_are_enough_vectors(tiny_base) -> None:
    short = MaskWords.of_caption(tiny_base, CAPTION, 16).vectors
    count = len(tiny_base.tokenizer(CAPTION, add_special_tokens=False).input_ids)
    assert short.shape == (16, 64)
    assert torch.equal(short[count], short[0])
    with pytest.raises(UserError, match="--vectors 76: the base reads 75 at most"):
        MaskWords.of_caption(tiny_base, CAPTION, 76)


def test_only_the_vectors_are_trained_and_the_loss_falls(tiny_base, objective) -> None:
    words = MaskWords.of_caption(tiny_base, CAPTION, 16)
    optimizer = torch.optim.AdamW(words.parameters(), lr=0.2)
    assert [name for name, _ in words.named_parameters()] == ["vectors"]
    before = [weight.clone() for weight in tiny_base.unet.parameters()]
    losses = []
    for _ in range(5):  # The same batch: the loss falls by learning alone.
        loss = objective(words, 0, range(3))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert words.vectors.grad is not None
    assert bool((words.vectors.grad.abs().sum(dim=1) > 0).all())
    for model in (tiny_base.unet, tiny_base.text_encoder, tiny_base.vae):
        assert all(weight.grad is None for weight in model.parameters())
    after = tiny_base.unet.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert losses[-1] < losses[0]


def test_a_batch_is_a_function_of_seed_and_positions(tiny_base, objective) -> None:
    words = MaskWords.of_caption(tiny_base, CAPTION, 16)
    with torch.no_grad():
        first = objective(words, 3, range(4))
        assert torch.equal(objective(words, 3, range(4)), first)
        assert not torch.equal(objective(words, 4, range(4)), first)
        assert not torch.equal(objective(words, 3, range(4, 8)), first)


def test_pictures_show_dark_masks_that_count_more(tiny_base, objective) -> None:
    assert objective.latents.shape == (12, 4, 16, 16)
    assert 0.05 < float(objective.region.mean()) < 0.7
    with torch.no_grad():
        decoded = tiny_base.vae.decode(
            objective.latents / tiny_base.vae.config.scaling_factor
        ).sample
    dark = decoded.mean(dim=1) < 0
    assert 0.02 < float(dark.float().mean()) < 0.15


def test_a_seed_draws_the_same_mask_again(tiny_base) -> None:
    vectors = MaskWords.of_caption(tiny_base, CAPTION, 16).vectors
    first = draw_masks(tiny_base, vectors, [1, 2], steps=3, guidance_scale=2)
    again = draw_masks(tiny_base, vectors, [1, 2], steps=3, guidance_scale=2)
    other = draw_masks(tiny_base, vectors, [3, 2], steps=3, guidance_scale=2)
    assert [mask.shape for mask in first] == [(64, 64)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(first[1], other[1])
    assert not np.array_equal(first[0], other[0])
