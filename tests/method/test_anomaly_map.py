"""The maps of the Q-Former, and Eq. 2 and 3 on them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acontrol.method.anomaly_map import (
    anomaly_attention,
    energy,
    energy_grad,
    query_mean,
    region_on_grid,
    rollout,
)


@pytest.fixture
def region() -> Tensor:
    return torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0.25, 0, 0], [1, 0, 0.5, 1, 0]]).double()


def test_anomaly_attention_is_eq_2() -> None:
    attention = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0)).double()
    spans = [(2, 3), (1, 5), (4, 7)]  # 1, 4 and 3 tokens
    span = torch.zeros(3, 7, dtype=torch.bool)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for sample, (start, stop) in enumerate(spans):
        span[sample, start:stop] = True
        for patch in range(5):
            for token in range(start, stop):
                expected[sample, patch] += attention[sample, token, patch] / (stop - start)
    torch.testing.assert_close(anomaly_attention(attention, span), expected, rtol=0, atol=1e-14)


def test_energy_is_eq_3(region: Tensor) -> None:
    attention = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)).double()
    expected = []
    for sample in range(3):
        inside = sum(float(attention[sample, p] * region[sample, p]) for p in range(5))
        whole = sum(float(attention[sample, p]) for p in range(5))
        expected.append((1 - inside / whole) ** 2)
    torch.testing.assert_close(
        energy(attention, region),
        torch.tensor(expected, dtype=torch.float64),
        rtol=0,
        atol=1e-14,
    )


def test_energy_has_a_hand_value() -> None:
    attention = torch.tensor([[1.0, 2.0, 5.0]])
    region = torch.tensor([[1.0, 0.5, 0.0]])
    assert energy(attention, region).item() == pytest.approx((1 - 2 / 8) ** 2)


weights = st.floats(min_value=1e-3, max_value=1e3)


@given(
    st.lists(st.tuples(weights, st.floats(0, 1)), min_size=1, max_size=9),
    st.floats(min_value=1e-2, max_value=1e2),
)
def test_energy_is_a_share_free_of_scale(
    cells: list[tuple[float, float]], scale: float
) -> None:
    attention = torch.tensor([[value for value, _ in cells]], dtype=torch.float64)
    region = torch.tensor([[inside for _, inside in cells]], dtype=torch.float64)
    value = energy(attention, region).item()
    assert -1e-12 <= value <= 1 + 1e-12
    assert energy(scale * attention, region).item() == pytest.approx(value, abs=1e-12)
    if (region == 1).all():
        assert value == pytest.approx(0, abs=1e-12)
    if not region.any():
        assert value == 1


def test_energy_grad_is_eq_3s_gradient(region: Tensor) -> None:
    attention = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)).double()
    attention.requires_grad_(True)
    (expected,) = torch.autograd.grad(energy(attention, region).sum(), attention)
    result = energy_grad(attention.detach(), region)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)
    assert expected.abs().min() > 1e-3


@pytest.fixture
def maps() -> Callable[[int], tuple[list[Tensor], list[Tensor | None]]]:
    """Maps of a Q-Former with 2 heads, 4 queries, 3 text tokens, 5 patches, batch 6."""

    def make(layers: int) -> tuple[list[Tensor], list[Tensor | None]]:
        generator = torch.Generator().manual_seed(layers)
        self_maps = [
            torch.rand(6, 2, 7, 7, generator=generator).double() for _ in range(layers)
        ]
        cross_maps = [
            torch.rand(6, 2, 4, 5, generator=generator).double() if layer % 2 == 0 else None
            for layer in range(layers)
        ]
        return self_maps, cross_maps

    return make


@pytest.mark.parametrize("layers", [2, 4, 5, 6])
def test_rollout_is_the_written_out_sum(maps: Callable, layers: int) -> None:
    self_maps, cross_maps = maps(layers)
    expected = torch.zeros(6, 3, 5, dtype=torch.float64)
    for layer in range(layers):
        # With 5 layers the last one cross-attends, and no text reads it any more.
        if cross_maps[layer] is None or layer + 1 == layers:
            continue
        for sample in range(6):
            read = sum(self_maps[layer + 1][sample, head] for head in range(2)) / 2
            seen = sum(cross_maps[layer][sample, head] for head in range(2)) / 2
            for text in range(3):
                for patch in range(5):
                    for query in range(4):
                        expected[sample, text, patch] += (
                            read[4 + text, query] * seen[query, patch]
                        )
    torch.testing.assert_close(rollout(self_maps, cross_maps), expected, rtol=0, atol=1e-13)


def test_a_last_cross_layer_is_not_read(maps: Callable) -> None:
    self_maps, cross_maps = maps(5)
    result = rollout(self_maps, cross_maps)
    assert cross_maps[4] is not None
    assert torch.equal(result, rollout(self_maps, [*cross_maps[:4], cross_maps[4] * 100]))
    assert not torch.equal(result, rollout(self_maps, [cross_maps[0] * 100, *cross_maps[1:]]))


@pytest.mark.parametrize("kept", [[], [2]])
def test_rollout_without_a_layer_to_read_is_refused(maps: Callable, kept: list[int]) -> None:
    self_maps, cross_maps = maps(3)
    few = [cross if layer in kept else None for layer, cross in enumerate(cross_maps)]
    with pytest.raises(ValueError, match="another layer follows"):
        rollout(self_maps, few)


def test_query_mean_is_over_layers_heads_and_queries(maps: Callable) -> None:
    _, cross_maps = maps(5)
    present = [cross for cross in cross_maps if cross is not None]
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for cross in present:
        for head in range(2):
            for query in range(4):
                expected += cross[:, head, query] / (len(present) * 2 * 4)
    torch.testing.assert_close(query_mean(cross_maps), expected, rtol=0, atol=1e-14)


def mask_of(height: int, width: int, *boxes: tuple[slice, slice]) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    for rows, columns in boxes:
        mask[0, 0, rows, columns] = 1
    return mask


def test_a_token_counts_by_the_share_that_is_covered() -> None:
    # Cells of 14 px, as in BLIP-2 at 224 px. Full; half; three rows.
    mask = mask_of(
        56,
        56,
        (slice(0, 14), slice(0, 14)),
        (slice(14, 28), slice(14, 21)),
        (slice(28, 31), slice(28, 42)),
    )
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[1, 1], expected[2, 2] = 1, 1 / 2, 3 / 14
    torch.testing.assert_close(region_on_grid(mask, 4)[0].reshape(4, 4), expected)


def test_cells_are_row_major() -> None:
    mask = mask_of(40, 40, (slice(0, 8), slice(24, 32)))  # row 0, column 3 of 5
    assert region_on_grid(mask, 5)[0].nonzero().flatten().tolist() == [3]


def test_a_thin_mask_counts_as_much_as_a_thick_one() -> None:
    mask = mask_of(40, 40, (slice(11, 12), slice(8, 24)), (slice(39, 40), slice(36, 40)))
    expected = torch.zeros(5, 5)
    expected[1, 1:3], expected[4, 4] = 1, 1 / 2
    torch.testing.assert_close(region_on_grid(mask, 5)[0].reshape(5, 5), expected)


def test_a_small_part_beside_a_large_one_counts() -> None:
    thick = mask_of(40, 40, (slice(0, 8), slice(0, 8)), (slice(39, 40), slice(39, 40)))
    thin = mask_of(40, 40, (slice(11, 12), slice(6, 7)))
    result = region_on_grid(torch.cat([thin, thick]), 5)
    assert [row.nonzero().flatten().tolist() for row in result] == [[5], [0, 24]]


def test_full_and_empty_masks() -> None:
    assert (region_on_grid(torch.ones(2, 1, 36, 36), 5) == 1).all()
    assert not region_on_grid(torch.zeros(2, 1, 36, 36), 5).any()


@given(st.data())
def test_a_mask_with_a_pixel_has_a_cell_of_weight_1(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(6, 40)), data.draw(st.integers(6, 40))
    grid = data.draw(st.integers(1, 6))
    places = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    pixels = data.draw(st.lists(places, min_size=1, max_size=30))
    mask = torch.zeros(1, 1, height, width)
    for row, column in pixels:
        mask[0, 0, row, column] = 1
    result = region_on_grid(mask, grid)
    assert result.shape == (1, grid**2)
    assert result.max() == 1
    # And no cell that the mask does not touch.
    cells = result[0].reshape(grid, grid)
    for row, column in cells.nonzero().tolist():
        top, bottom = row * height // grid, -(-(row + 1) * height // grid)
        left, right = column * width // grid, -(-(column + 1) * width // grid)
        assert mask[0, 0, top:bottom, left:right].any()
