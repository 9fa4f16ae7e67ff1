import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from acontrol.config import (
    AseaConfig,
    CsmConfig,
    DataConfig,
    DropoutConfig,
    OptimConfig,
    RunConfig,
    SgaConfig,
)
from acontrol.data.features import NAMES, FeatureBatch
from acontrol.data.stream import Batch
from acontrol.method.condition_dropout import ConditionedSteps, chances, dropped_conditions
from acontrol.method.diffusion import draw, timestep_weights
from acontrol.method.encoder import embed_text
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels

MakeBatch = Callable[..., Batch]
MIXED = DropoutConfig(text=0.25, semantic=0.25, both=0.25)


@pytest.fixture
def make(base: BaseModels, adapter: SemanticAdapter) -> Callable[..., AnomalyControl]:
    """Make the assembly at 48 px; keywords are groups of the config."""

    def make_one(adapter: SemanticAdapter = adapter, **groups: Any) -> AnomalyControl:
        entries = {
            "seed": 11,
            "data": DataConfig(resolution=48),
            "asea": AseaConfig(steps=1),
            "dropout": MIXED,
        }
        return AnomalyControl(base, adapter, RunConfig(**{**entries, **groups}))

    return make_one


Make = Callable[..., AnomalyControl]
FIRST = 20  # From here on, five positions hold every case of condition dropout.


def part_of(batch: Batch, rows: slice) -> Batch:
    return Batch(
        **{field.name: getattr(batch, field.name)[rows] for field in dataclasses.fields(batch)}
    )


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        column = getattr(batch, field.name)
        columns[field.name] = (
            column[rows] if isinstance(column, Tensor) else [column[row] for row in rows]
        )
    return Batch(**columns)


def test_only_the_adapter_gets_gradients(make: Make, batch: MakeBatch) -> None:
    model = make()
    model(batch(first=FIRST)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"adapter.proj.weight"}
    with_gradient = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert with_gradient == trained
    # Every layer's K' and V' take part.
    gradient = model.adapter.proj.weight.grad
    assert gradient is not None
    start = 0
    for width in model.adapter.widths:
        for _ in range(2):
            assert gradient[start : start + width].abs().max() > 0
            start += width
    assert start == len(gradient)


def test_the_gradient_is_the_finite_difference(make: Make, batch: MakeBatch) -> None:
    model = make(dropout=DropoutConfig(text=0, semantic=0, both=0))
    weight = model.adapter.proj.weight
    model(batch()).loss.backward()
    assert weight.grad is not None
    direction = weight.grad / weight.grad.norm()
    step = 0.05
    with torch.no_grad():
        weight += step * direction
        above = model(batch()).loss
        weight -= 2 * step * direction
        below = model(batch()).loss
    assert (above - below).item() / (2 * step) == pytest.approx(
        weight.grad.norm().item(), rel=0.05
    )


def test_the_frozen_parts_stay_as_they_are(
    make: Make, batch: MakeBatch, tiny_base: BaseModels
) -> None:
    model = make()
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1
    )
    before = model.adapter.proj.weight.detach().clone()
    model(batch()).loss.backward()
    optimizer.step()
    assert not torch.equal(model.adapter.proj.weight, before)
    for name in ("vae", "text_encoder", "unet", "vlm"):
        theirs = getattr(tiny_base, name).state_dict()
        for key, value in getattr(model, name).state_dict().items():
            assert torch.equal(value, theirs[key]), f"{name}: {key}"


def test_the_loss_is_eq_6_by_hand(make: Make, batch: MakeBatch) -> None:
    model, samples = make(sga=SgaConfig(scale=0.7)), batch(5, first=FIRST)
    losses = model(samples)
    drawn = draw(11, samples.positions, (4, 12, 12), 1000)
    drop_text, drop_semantic = dropped_conditions(chances(11, samples.positions), MIXED)
    cases = set(zip(drop_text.tolist(), drop_semantic.tolist(), strict=True))
    assert len(cases) == 4
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(dim=0)
    total = 0.0
    for row in range(5):
        with torch.no_grad():
            one = part_of(samples, slice(row, row + 1))
            moments = model.vae.quant_conv(model.vae.encoder(one.image))
            mean, log_variance = moments.chunk(2, dim=1)
            latents = mean + (log_variance / 2).exp() * drawn.posterior_noise[row : row + 1]
            latents = latents * model.vae.config.scaling_factor
            t, noise = int(drawn.timesteps[row]), drawn.noise[row : row + 1]
            noisy = alpha_bar[t] ** 0.5 * latents + (1 - alpha_bar[t]) ** 0.5 * noise
            caption = "" if drop_text[row] else one.caption[0]
            ids = model.tokenizer(caption, padding="max_length", return_tensors="pt").input_ids
            text = model.text_encoder(ids).last_hidden_state
            semantic = model.encoder.semantics(
                one.reference_image, one.reference_phrase, one.reference_mask
            )
            tokens = semantic.tokens * (0 if drop_semantic[row] else 1)
            pairs = model.adapter.split(model.adapter(tokens))
            noise_pred = model.unet(
                noisy.float(),
                t,
                text,
                cross_attention_kwargs={"semantic": pairs, "semantic_scale": 0.7},
            ).sample
            total += (noise_pred - noise).double().square().mean().item() / 5
            assert losses.energy_before[row].item() == pytest.approx(
                semantic.energy_before.item(), abs=1e-5
            )
            assert losses.energy_after[row].item() == pytest.approx(
                semantic.energy_after.item(), abs=1e-5
            )
    assert losses.loss.item() == pytest.approx(total, rel=1e-5)
    assert losses.loss.shape == ()


def test_the_loss_takes_its_weight_by_timestep(make: Make, batch: MakeBatch) -> None:
    samples = batch(5)
    plain = make()(samples).per_sample
    weighted = make(optim=OptimConfig(loss_weighting="late"))(samples).per_sample
    timesteps = draw(11, samples.positions, (4, 12, 12), 1000).timesteps
    alphas = make().scheduler.alphas_cumprod
    expected = plain * timestep_weights(alphas, "late")[timesteps]
    torch.testing.assert_close(weighted, expected)
    assert not torch.allclose(weighted, plain, rtol=0.1)


def test_the_loss_counts_the_defect_more(make: Make, batch: MakeBatch) -> None:
    samples = batch(5)
    everywhere = dataclasses.replace(samples, mask=torch.ones_like(samples.mask))
    model, plain = make(optim=OptimConfig(mask_weight=3.0)), make()
    expected = plain(samples).per_sample
    torch.testing.assert_close(model(everywhere).per_sample, expected)
    assert not torch.allclose(model(samples).per_sample, expected, rtol=1e-3)


def test_add_noise_is_eq_1(tiny_base: BaseModels) -> None:
    # Eq. 1's alpha-bar for SD1.5's schedule, as used above, is the scheduler's.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(
        tiny_base.scheduler.alphas_cumprod.double(),
        (1 - betas).cumprod(dim=0),
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_loss_is_reproducible(make: Make, batch: MakeBatch) -> None:
    model, samples = make(), batch()
    first = model(samples)
    torch.manual_seed(99)
    second = model(samples)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.energy_after, second.energy_after)
    assert model(batch(first=8)).loss != first.loss
    assert make(seed=12)(samples).loss != first.loss


def test_halves_of_a_batch_make_the_whole(make: Make, batch: MakeBatch) -> None:
    model, samples = make(), batch(4, first=FIRST)
    whole = model(samples)
    whole.loss.backward()
    gradient = model.adapter.proj.weight.grad
    assert gradient is not None
    model.adapter.zero_grad()
    halves = [model(part_of(samples, rows)) for rows in (slice(0, 2), slice(2, 4))]
    for half in halves:
        (half.loss / 2).backward()
    mean = sum(half.loss.item() for half in halves) / 2
    assert mean == pytest.approx(whole.loss.item(), abs=1e-6)
    torch.testing.assert_close(model.adapter.proj.weight.grad, gradient, rtol=1e-3, atol=1e-7)


def test_a_batch_that_loses_every_condition_still_reaches_the_adapter(
    make: Make, batch: MakeBatch
) -> None:
    model = make(dropout=DropoutConfig(text=0, semantic=0, both=0.9999))
    losses = model(batch())
    assert losses.loss.requires_grad
    losses.loss.backward()
    gradient = model.adapter.proj.weight.grad
    assert gradient is not None
    assert gradient.count_nonzero() == 0
    # Then the captions and references say nothing.
    other = dataclasses.replace(batch(), caption=["tile", "hole", "x"])
    other = dataclasses.replace(other, reference_image=-other.reference_image)
    assert torch.equal(model(other).loss, losses.loss)


def test_elided_steps_have_the_gradient_of_all_that_they_cover(
    base: BaseModels, adapter: SemanticAdapter, batch: MakeBatch
) -> None:
    # In float64: another batch composition alone moves float32's gradient by 1e-6.
    parts = {
        name: copy.deepcopy(getattr(base, name)).double()
        for name in ("vae", "text_encoder", "unet", "vlm")
    }
    config = RunConfig(seed=11, data=DataConfig(resolution=48), dropout=MIXED)
    model = AnomalyControl(
        dataclasses.replace(base, **parts), copy.deepcopy(adapter).double(), config
    )
    weight = model.adapter.proj.weight

    def gradient(loss: Tensor) -> Tensor:
        loss.backward()
        found, weight.grad = weight.grad, None
        assert found is not None
        return found

    steps = ConditionedSteps.of_run(11, MIXED, 3, 4)
    first = 0
    for step in range(4):
        kept = steps.positions[3 * step : 3 * step + 3].tolist()
        covered = list(range(first, kept[-1] + 1))
        first = kept[-1] + 1
        rows = [covered.index(position) for position in kept]
        content = [position % 5 for position in covered]
        samples = dataclasses.replace(rows_of(batch(5), content), positions=covered)
        less = rows_of(samples, rows)
        plain, elided = model(samples), model(less)
        expected = gradient(plain.loss)
        found = gradient(elided.loss * float(steps.shares[step]))
        assert expected.norm() > 0
        assert (found - expected).norm() / expected.norm() < 1e-6
        torch.testing.assert_close(elided.per_sample, plain.per_sample[rows])
    assert steps.shares.min() < 1


def test_pooled_tokens_are_trained_also_where_c_is_dropped(
    make: Make, batch: MakeBatch, base: BaseModels
) -> None:
    torch.manual_seed(2)
    adapter = SemanticAdapter.from_unet(base.unet, 64, mode="pooled")
    model = make(
        adapter,
        csm=CsmConfig(mode="pooled"),
        dropout=DropoutConfig(text=0, semantic=0, both=0.9999),
    )
    model(batch()).loss.backward()
    trained = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert trained == {f"adapter.{name}" for name, _ in adapter.named_parameters()}
    assert adapter.proj.weight.grad is not None
    assert adapter.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("field", ["caption", "reference_image", "reference_phrase", "image"])
def test_every_condition_reaches_the_loss(make: Make, batch: MakeBatch, field: str) -> None:
    model = make(dropout=DropoutConfig(text=0, semantic=0, both=0))
    samples = batch()
    value = getattr(samples, field)
    turned = value.flip(0) if isinstance(value, Tensor) else value[::-1]
    other = dataclasses.replace(samples, **{field: turned})
    assert abs(model(other).loss.item() - model(samples).loss.item()) > 1e-7


def test_gamma_zero_is_the_base_models_loss(make: Make, batch: MakeBatch) -> None:
    samples = batch()
    off = make(sga=SgaConfig(scale=0))(samples).loss
    zero = make(dropout=DropoutConfig(text=0.25, semantic=0.25, both=0.25))
    zero.adapter.proj.weight.data.zero_()
    assert torch.equal(zero(samples).loss, off)


def test_project_stands_in_for_the_adapter(make: Make, batch: MakeBatch) -> None:
    model, samples = make(), batch()
    seen = []

    def project(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return model.adapter(tokens)

    result = model(samples, project)
    assert torch.equal(result.loss, model(samples).loss)
    (tokens,) = seen
    assert tokens.shape == (3, 8, 64)
    assert not tokens.requires_grad


def test_features_give_what_their_samples_give(make: Make, batch: MakeBatch) -> None:
    model, samples = make(), batch(5, first=FIRST)
    seen = model.encoder(samples)
    values = {name: getattr(seen, name) for name in NAMES}
    kept = FeatureBatch(**values, positions=samples.positions, keys=samples.keys)
    online, offline = model(samples), model(kept)
    assert torch.equal(online.loss, offline.loss)
    assert torch.equal(online.energy_after, offline.energy_after)
    online.loss.backward()
    gradient = model.adapter.proj.weight.grad.clone()
    model.adapter.zero_grad()
    offline.loss.backward()
    assert torch.equal(model.adapter.proj.weight.grad, gradient)


def test_text_is_padded_and_cut(tiny_base: BaseModels) -> None:
    texts = ["", "a crack", "crack " * 200]
    result = embed_text(tiny_base.text_encoder, tiny_base.tokenizer, texts)
    assert result.shape == (3, 77, 64)
    assert not result.requires_grad
    alone = embed_text(tiny_base.text_encoder, tiny_base.tokenizer, texts[1:2])
    torch.testing.assert_close(result[1], alone[0], rtol=1e-5, atol=1e-5)
