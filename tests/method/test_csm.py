from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from acontrol.config import AseaConfig, CsmConfig
from acontrol.method import anomaly_map
from acontrol.method.anomaly_map import ReferenceText
from acontrol.method.asea import guide
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.qformer import QFormerPass
from acontrol.networks.load import BaseModels
from benchmarks import naive_asea
from benchmarks.naive_asea import Recorder

Make = Callable[..., CrossModalEncoder]


@pytest.fixture
def encoder(base: BaseModels) -> Make:
    """Make an encoder on the test's own BLIP-2; keywords go to AseaConfig."""
    # Attention of fresh weights is all but uniform, and would not tell two maps apart.
    for layer in base.vlm.qformer.encoder.layer:
        for name in ("attention", "crossattention"):
            if hasattr(layer, name):
                getattr(layer, name).attention.query.weight.data *= 20

    def make(csm: CsmConfig | None = None, **attention: Any) -> CrossModalEncoder:
        settings = csm or CsmConfig()
        return CrossModalEncoder(
            base.vlm, base.vlm_tokenizer, settings, AseaConfig(**attention)
        )

    return make


PHRASES = ["a crack", "large dark stain", "hole"]


@pytest.fixture
def reference() -> tuple[Tensor, list[str], Tensor]:
    """Three random images, phrases of different lengths, masks of different areas."""
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(3, 1, 64, 64)
    for row in range(3):
        mask[row, :, 8 * row : 8 * row + 24, 16:40] = 1
    return image, PHRASES, mask


def replaced(reference: tuple[Tensor, list[str], Tensor], **changes: Any) -> dict[str, Any]:
    return {**dict(zip(("image", "phrases", "mask"), reference, strict=True)), **changes}


@pytest.mark.parametrize("text", [True, False])
def test_semantic_tokens_are_the_query_outputs(
    encoder: Make, reference: Any, text: bool
) -> None:
    features = encoder(CsmConfig(text=text))(*reference)
    assert features.tokens.shape == (3, 8, 64)
    assert features.energy_before.shape == features.energy_after.shape == (3,)
    assert not features.tokens.requires_grad


def plain(
    made: CrossModalEncoder, visual: Tensor, words: ReferenceText | None
) -> tuple[Tensor, Tensor]:
    """Transformers' own pass: C' and the map."""
    return naive_asea.attend(
        made.vlm, visual, words, method=made.asea.map, solver=made.asea.solver
    )


@pytest.mark.parametrize("solver", ["all", "first"])
def test_a_step_is_eq_4_on_the_q_former(encoder: Make, reference: Any, solver: str) -> None:
    alpha = 1.0
    made = encoder(steps=1, step_size=alpha, rule="gd", solver=solver)
    made.vlm.double()
    image, phrases, mask = reference
    words, region = made.read(phrases), anomaly_map.region_on_grid(mask, made.grid)
    visual = made.embed_image(image).requires_grad_(True)
    before = anomaly_map.energy(plain(made, visual, words)[1], region)
    (gradient,) = torch.autograd.grad(before.sum(), visual)
    with torch.no_grad():
        tokens, attention = plain(made, visual - alpha * gradient, words)
    features = made(image, phrases, mask)
    torch.testing.assert_close(features.tokens, tokens, rtol=0, atol=1e-12)
    torch.testing.assert_close(features.energy_before, before.detach(), rtol=0, atol=1e-12)
    after = anomaly_map.energy(attention, region)
    torch.testing.assert_close(features.energy_after, after, rtol=0, atol=1e-12)
    assert (features.energy_before - features.energy_after).abs().min() > 1e-9


@pytest.mark.parametrize("method", ["rollout", "query_mean"])
def test_energy_falls_on_random_images(encoder: Make, method: str) -> None:
    image = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(8, 1, 64, 64)
    mask[..., 16:40, 8:32] = 1
    features = encoder(steps=3, step_size=0.02, map=method)(image, ["a crack"] * 8, mask)
    assert features.energy_after.mean() < features.energy_before.mean() - 1e-3
    assert (features.energy_after < features.energy_before).sum() >= 7


def test_more_steps_go_further(encoder: Make, reference: Any) -> None:
    energies = [
        encoder(steps=steps, step_size=0.02)(*reference).energy_after.mean().item()
        for steps in range(4)
    ]
    assert energies == sorted(energies, reverse=True)
    assert len(set(energies)) == 4


def test_without_steps_the_tokens_are_the_plain_q_formers(
    encoder: Make, reference: Any
) -> None:
    made = encoder(steps=0)
    image, phrases, _ = reference
    features = made(*reference)
    with torch.no_grad():
        tokens, _ = plain(made, made.embed_image(image), made.read(phrases))
    torch.testing.assert_close(features.tokens, tokens, rtol=1e-5, atol=1e-5)
    assert torch.equal(features.energy_before, features.energy_after)


def test_tokens_are_blip_2s_own(encoder: Make, reference: Any) -> None:
    # Transformers' image-text matching head sees the same query outputs.
    image, phrases, _ = reference
    made = encoder(steps=0)
    made.vlm.double()
    words = made.read(phrases)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        expected = made.vlm(
            pixel_values=((image.double() + 1) / 2 - mean) / std,
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
            use_image_text_matching_head=True,
        ).logits_per_image
        tokens = made(*reference).tokens
        result = made.vlm.itm_head(tokens).mean(dim=1)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9)


def test_semantic_tokens_do_not_depend_on_anything_else(encoder: Make, reference: Any) -> None:
    made = encoder()
    first = made(*reference)
    torch.manual_seed(99)
    made.vlm.train()  # A caller may switch modes; the encoder is built in evaluation mode.
    again = encoder()
    with torch.no_grad():
        second = again(*reference)
    with torch.enable_grad():
        third = again(*reference)
    with torch.inference_mode():
        fourth = again(*reference)
    for features in (second, third, fourth):
        assert torch.equal(features.tokens, first.tokens)
        assert torch.equal(features.energy_after, first.energy_after)
    assert all(parameter.grad is None for parameter in again.vlm.parameters())
    assert not any(parameter.requires_grad for parameter in again.vlm.parameters())


def test_a_sample_does_not_feel_the_batch_around_it(encoder: Make, reference: Any) -> None:
    made = encoder()
    made.vlm.double()  # Steps enlarge the rounding of float32, which is another for each size.
    image, phrases, mask = reference
    whole = made(*reference).tokens
    for one in range(3):
        # Alone, a short phrase has no padding.
        alone = made(image[one : one + 1], phrases[one : one + 1], mask[one : one + 1])
        torch.testing.assert_close(alone.tokens[0], whole[one], rtol=0, atol=1e-9)


@pytest.mark.parametrize("template", ["This is an image with", "photo of", ""])
def test_the_span_is_the_anomalys_tokens(encoder: Make, template: str) -> None:
    made = encoder(CsmConfig(template=template))
    phrases = ["crack", "large dark stain", "a xyz"]
    words = made.read(phrases)
    expected = [["crack"], ["large", "dark", "stain"], ["a", "x", "##y", "##z"]]
    for ids, mask, span, pieces in zip(
        words.input_ids, words.attention_mask, words.span, expected, strict=True
    ):
        tokens = made.tokenizer.convert_ids_to_tokens(ids.tolist())
        result = [token for token, chosen in zip(tokens, span, strict=True) if chosen]
        assert result == pieces
        assert tokens[int(mask.sum()) - 1] == "[SEP]"
        # They are the last before [SEP].
        last = int(span.nonzero().max())
        assert last == int(mask.sum()) - 2


@pytest.mark.parametrize("phrase", ["", "  "])
def test_a_phrase_without_tokens_is_refused(encoder: Make, phrase: str) -> None:
    with pytest.raises(ValueError, match="gives no token"):
        encoder().read(["a crack", phrase])


def test_a_phrase_longer_than_the_q_former_reads_is_refused(encoder: Make) -> None:
    with pytest.raises(ValueError, match=r"'xyzxyz.* is too long: \d+ tokens .* takes 64"):
        encoder().read(["a crack", "xyz" * 30])


def test_text_matters_where_it_is_read(encoder: Make, reference: Any) -> None:
    other = replaced(reference, phrases=["spots", "hole", "a dent"])
    read = encoder()
    difference = read(*reference).tokens - read(**other).tokens
    assert (difference.abs().amax(dim=(1, 2)) > 1e-3).all()
    blind = encoder(CsmConfig(text=False))
    assert torch.equal(blind(*reference).tokens, blind(**other).tokens)


def test_image_and_mask_matter(encoder: Make, reference: Any) -> None:
    made = encoder()
    tokens = made(*reference).tokens
    image = made(**replaced(reference, image=reference[0].flip(0))).tokens
    mask = made(**replaced(reference, mask=reference[2].flip(-1))).tokens
    assert (tokens - image).abs().max() > 1e-3
    assert (tokens - mask).abs().max() > 1e-5
    # Without a step the mask only measures.
    still = encoder(steps=0)
    flipped = still(**replaced(reference, mask=reference[2].flip(-1)))
    assert torch.equal(still(*reference).tokens, flipped.tokens)


def test_grey_hides_what_lies_outside_the_mask(encoder: Make, reference: Any) -> None:
    image, _, mask = reference
    other = torch.where(mask > 0, image, image.flip(-1))
    keep, grey = (encoder(CsmConfig(outside=name), steps=0) for name in ("keep", "grey"))
    hidden = replaced(reference, image=other)
    assert (keep(*reference).tokens - keep(**hidden).tokens).abs().max() > 1e-3
    assert torch.equal(grey(*reference).tokens, grey(**hidden).tokens)
    inside = replaced(reference, image=torch.where(mask > 0, image.flip(-1), image))
    assert (grey(*reference).tokens - grey(**inside).tokens).abs().max() > 1e-3


def test_with_target_keys_the_values_stay_e_v(encoder: Make, reference: Any) -> None:
    made = encoder(steps=3, rule="token", step_size=0.3, target="keys")
    features = made(*reference)
    assert (features.energy_after < features.energy_before).all()
    image, phrases, mask = reference
    visual, words = made.embed_image(image), made.read(phrases)
    qformer = QFormerPass(made.vlm, 3, words, method="rollout", first=False, values=visual)
    guided, _ = guide(qformer, visual, anomaly_map.region_on_grid(mask, made.grid), made.asea)
    with torch.no_grad():
        tokens, _ = naive_asea.attend(made.vlm, guided, words, values=visual)
        moved, _ = naive_asea.attend(made.vlm, guided, words)
    torch.testing.assert_close(features.tokens, tokens, rtol=1e-4, atol=1e-4)
    assert (features.tokens - moved).abs().max() > 1e-2


def test_the_two_maps_differ(encoder: Make, reference: Any) -> None:
    rollout, mean = (encoder(map=name)(*reference) for name in ("rollout", "query_mean"))
    assert (rollout.energy_before - mean.energy_before).abs().min() > 1e-5
    assert not torch.equal(rollout.tokens, mean.tokens)


@pytest.mark.parametrize("method", ["rollout", "query_mean"])
@pytest.mark.parametrize("text", [True, False])
def test_the_map_is_eq_2_on_the_patches(
    encoder: Make, reference: Any, method: str, text: bool
) -> None:
    made = encoder(CsmConfig(text=text), map=method)
    image, phrases, _ = reference
    words = made.read(phrases) if text else None
    with torch.no_grad(), Recorder(made.vlm.qformer) as record:
        _, attention = plain(made, made.embed_image(image), words)
    assert made.grid == 8
    assert attention.shape == (3, 64)
    expected = torch.zeros(3, 64)
    for layer in (0, 2, 4):
        cross = record.cross_maps[layer]
        assert cross is not None
        # Column 0 is the class token, which is no place.
        seen = cross[:, :, :, 1:].mean(dim=1)
        if words is None or method == "query_mean":
            expected += seen.mean(dim=1) / 3
            continue
        read = record.self_maps[layer + 1].mean(dim=1)
        for sample in range(3):
            tokens = words.span[sample].nonzero().flatten() + 8  # The queries come first.
            expected[sample] += (read[sample, tokens][:, :8] @ seen[sample]).mean(dim=0)
    torch.testing.assert_close(attention, expected, rtol=1e-5, atol=1e-8)


def hooks(encoder: CrossModalEncoder) -> int:
    return sum(len(module._forward_hooks) for module in encoder.vlm.modules())


def test_recorder_leaves_no_hooks_behind(encoder: Make, reference: Any) -> None:
    made = encoder()
    assert hooks(made) == 0
    with pytest.raises(RuntimeError, match="broken"), Recorder(made.vlm.qformer):
        assert hooks(made) == 6 + 3
        raise RuntimeError("broken")
    assert hooks(made) == 0


def test_recorded_maps_are_transformers_own(encoder: Make, reference: Any) -> None:
    made = encoder()
    image, phrases, _ = reference
    words = made.read(phrases)
    queries = made.vlm.query_tokens.expand(3, -1, -1)
    with torch.no_grad():
        arguments = {
            "query_embeds": made.vlm.embeddings(
                input_ids=words.input_ids, query_embeds=queries
            ),
            "query_length": 8,
            "attention_mask": torch.cat(
                [torch.ones(3, 8, dtype=torch.long), words.attention_mask], dim=1
            ),
            "encoder_hidden_states": made.embed_image(image),
        }
        with Recorder(made.vlm.qformer) as record:
            made.vlm.qformer(**arguments)
        theirs = made.vlm.qformer(**arguments, output_attentions=True)
    length = 8 + words.input_ids.shape[1]
    assert [tuple(maps.shape) for maps in record.self_maps] == [(3, 4, length, length)] * 6
    present = [layer for layer, maps in enumerate(record.cross_maps) if maps is not None]
    assert present == [0, 2, 4]
    ours = [record.cross_maps[place] for place in present]
    assert len(theirs.cross_attentions) == 3
    for one, other in zip(ours, theirs.cross_attentions, strict=True):
        assert one is not None
        assert one.shape == (3, 4, 8, 65)
        assert torch.equal(one, other)
    # "attentions" mixes in the cross maps: they have another shape.
    whole = [maps for maps in theirs.attentions if maps.shape[-1] == length]
    for one, other in zip(record.self_maps, whole, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.sum(-1), torch.ones_like(one.sum(-1)))


def test_padding_takes_no_attention(encoder: Make, reference: Any) -> None:
    made = encoder()
    image, phrases, _ = reference
    words = made.read(phrases)
    padded = words.attention_mask == 0
    assert padded.any()
    with torch.no_grad(), Recorder(made.vlm.qformer) as record:
        plain(made, made.embed_image(image), words)
    for maps in record.self_maps:
        assert maps[..., 8:].sum(dim=(1, 2))[padded].abs().max() == 0
