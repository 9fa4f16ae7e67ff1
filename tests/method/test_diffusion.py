import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acontrol.config import DropoutConfig
from acontrol.method.condition_dropout import ConditionedSteps, chances, dropped_conditions
from acontrol.method.diffusion import (
    Draw,
    denoising_loss,
    draw,
    timestep_weights,
)

SHAPE = (4, 6, 5)


def rows(drawn: Draw) -> list[tuple[torch.Tensor, ...]]:
    columns = (drawn.noise, drawn.posterior_noise, drawn.timesteps)
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("positions", [[5], [5, 6], [9, 5], [6, 7, 5], [5, 5]])
def test_a_draw_depends_on_seed_and_position_alone(positions: list[int]) -> None:
    (expected,) = rows(draw(3, [5], SHAPE, 1000))
    torch.manual_seed(positions[0] * 100 + len(positions))  # Global state plays no part.
    result = rows(draw(3, positions, SHAPE, 1000))[positions.index(5)]
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw(3, [5, 6], SHAPE, 1000)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("seed", "position"), [(4, 5), (3, 6), (5, 3), (3, 2**40)])
def test_another_seed_or_position_draws_otherwise(seed: int, position: int) -> None:
    (one,) = rows(draw(3, [5], SHAPE, 10**6))
    (other,) = rows(draw(seed, [position], SHAPE, 10**6))
    for mine, theirs in zip(one, other, strict=True):
        assert not torch.equal(mine, theirs)


def test_the_two_noises_are_not_the_same() -> None:
    drawn = draw(3, [5, 6], SHAPE, 1000)
    assert not torch.equal(drawn.noise, drawn.posterior_noise)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**62), st.integers(1, 1000))
def test_draws_stay_in_range(seed: int, position: int, num_timesteps: int) -> None:
    drawn = draw(seed, [position, position + 1], (2, 3, 1), num_timesteps)
    assert drawn.noise.shape == drawn.posterior_noise.shape == (2, 2, 3, 1)
    assert drawn.timesteps.dtype == torch.int64
    assert ((drawn.timesteps >= 0) & (drawn.timesteps < num_timesteps)).all()
    chance = chances(seed, [position, position + 1])
    assert ((chance >= 0) & (chance <= 1)).all()
    assert chance[0] != chance[1]


@pytest.fixture(scope="module")
def many() -> Draw:
    return draw(0, range(20_000), (1, 1, 1), 10)


def test_draws_follow_their_distributions(many: Draw) -> None:
    count = 20_000
    for noise in (many.noise, many.posterior_noise):
        assert abs(noise.mean().item()) < 4 / count**0.5
        assert abs(noise.var().item() - 1) < 4 * (2 / count) ** 0.5
    both = (many.noise * many.posterior_noise).mean().item()
    assert abs(both) < 4 / count**0.5
    # Every timestep, the first and the last too, equally often.
    counts = many.timesteps.bincount(minlength=10)
    assert len(counts) == 10
    assert ((counts - count / 10).abs() < 4 * (count * 0.1 * 0.9) ** 0.5).all()


@pytest.mark.parametrize("shares", [(0.05, 0.05, 0.05), (0.3, 0.1, 0.2), (0.0, 0.4, 0.0)])
def test_conditions_drop_as_often_as_configured(shares: tuple[float, float, float]) -> None:
    text, semantic, both = shares
    lost_text, lost_semantic = dropped_conditions(
        chances(0, range(20_000)), DropoutConfig(text=text, semantic=semantic, both=both)
    )
    for share, lost in (
        (text, lost_text & ~lost_semantic),
        (semantic, lost_semantic & ~lost_text),
        (both, lost_text & lost_semantic),
    ):
        sigma = (share * (1 - share) / 20_000) ** 0.5
        assert abs(lost.double().mean().item() - share) <= 4 * sigma


def test_one_draw_decides_on_both_conditions() -> None:
    dropout = DropoutConfig(text=0.25, semantic=0.125, both=0.5)
    chance = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.8749, 0.875, 0.9999])
    text, semantic = dropped_conditions(chance, dropout)
    assert text.tolist() == [True, True, True, True, False, False, False, False]
    assert semantic.tolist() == [False, False, True, True, True, True, False, False]


def test_nothing_drops_without_dropout() -> None:
    text, semantic = dropped_conditions(
        torch.tensor([0.0, 0.5, 0.9999]), DropoutConfig(text=0, semantic=0, both=0)
    )
    assert not text.any()
    assert not semantic.any()


@pytest.mark.parametrize("seed", [0, 3])
def test_places_of_dropped_samples_are_filled_with_the_next(seed: int) -> None:
    dropout = DropoutConfig(text=0.1, semantic=0.3, both=0.2)
    steps = ConditionedSteps.of_run(seed, dropout, 6, 50)
    drops = [bool(dropped_conditions(chances(seed, [at]), dropout)[1]) for at in range(2000)]
    assert steps.positions.tolist() == [at for at in range(2000) if not drops[at]][:300]
    # Every position up to the last is covered by exactly one step.
    last = 0
    for step, share in enumerate(steps.shares):
        end = steps.positions[6 * step + 5] + 1
        assert share == 6 / (end - last)
        last = end
    # A longer run starts with the same steps.
    longer = ConditionedSteps.of_run(seed, dropout, 6, 500)
    assert np.array_equal(longer.positions[:300], steps.positions)
    assert np.array_equal(longer.shares[:50], steps.shares)
    assert 1 / np.mean(1 / longer.shares) == pytest.approx(0.5, abs=0.03)


def test_denoising_loss_is_eq_6_by_hand() -> None:
    noise = torch.zeros(2, 1, 1, 3)
    noise_pred = torch.tensor([[[[1.0, -2.0, 3.0]]], [[[0.0, 0.5, 0.0]]]])
    expected = torch.tensor([14 / 3, 0.25 / 3])
    torch.testing.assert_close(denoising_loss(noise_pred, noise), expected)
    torch.testing.assert_close(denoising_loss(noise, noise_pred), expected)


def test_denoising_loss_counts_the_region_more() -> None:
    noise, noise_pred = torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)
    noise_pred[0, :, 0, 0], noise_pred[1, :, 1, 1] = 2.0, 2.0
    region = torch.zeros(2, 1, 2, 2)
    region[:, :, 0, 0] = 1
    # One of four places has the error, 4; weights are 4, 1, 1, 1 over their mean, 7 / 4.
    expected = torch.tensor([4 * 4 / 7, 4 * 1 / 7])
    torch.testing.assert_close(denoising_loss(noise_pred, noise, region, 3.0), expected)
    plain = denoising_loss(noise_pred, noise, region, 0.0)
    torch.testing.assert_close(plain, torch.tensor([1.0, 1.0]))


def test_denoising_loss_is_a_mean_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, *SHAPE, generator=generator) for _ in range(2))
    result = denoising_loss(one, other)
    for sample in range(3):
        total = 0.0
        for mine, theirs in zip(
            one[sample].flatten().tolist(), other[sample].flatten().tolist(), strict=True
        ):
            total += (mine - theirs) ** 2
        assert result[sample].item() == pytest.approx(total / (4 * 6 * 5), rel=1e-5)


def test_half_precision_is_squared_in_single() -> None:
    # 300 squared is over float16's range.
    noise = torch.zeros(1, 1, 1, 2, dtype=torch.float16)
    result = denoising_loss(noise + 300, noise)
    assert result.dtype == torch.float32
    assert result.item() == 90_000


def test_late_weights_follow_their_formula() -> None:
    alphas = torch.tensor([0.999, 0.9, 0.5, 0.04, 0.01], dtype=torch.float64)
    raw = []
    for alpha in alphas.tolist():
        snr = alpha / (1 - alpha)
        raw.append(min(snr, 5) / snr * min(1 / alpha, 30))
    expected = torch.tensor(raw, dtype=torch.float64) * 5 / sum(raw)
    torch.testing.assert_close(timestep_weights(alphas, "late"), expected)
    assert torch.equal(timestep_weights(alphas, "none"), torch.ones_like(alphas))
