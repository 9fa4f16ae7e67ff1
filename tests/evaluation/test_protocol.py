"""Where the published and the strict protocol differ, and the bootstrap."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from acontrol.evaluation.bootstrap import (
    RESAMPLES,
    interval,
    mean_over_trainings,
    nan_mean,
    resample_weights,
    resampled,
)
from acontrol.evaluation.detector import DetectorUNet, focal_loss, image_scores
from acontrol.evaluation.images import ImageSet, truncate
from acontrol.evaluation.protocol import METRICS, PROTOCOLS, Truth, chosen_epoch, score
from acontrol.evaluation.summary import Row, comparison_tables


def image_set(masks: torch.Tensor, truncated: torch.Tensor | None = None) -> ImageSet:
    count, side, _ = masks.shape
    return ImageSet(
        torch.zeros(count, 3, side, side, dtype=torch.uint8),
        masks,
        masks if truncated is None else truncated,
        tuple("crack" if mask.any() else "good" for mask in masks),
        tuple(Path(f"{index}.png") for index in range(count)),
        tuple(str(index) for index in range(count)),
    )


@pytest.fixture
def noisy() -> tuple[torch.Tensor, ImageSet]:
    """Ten images, six of them defective, and half-informative maps."""
    rng = np.random.default_rng(11)
    masks = torch.zeros(10, 32, 32, dtype=torch.bool)
    for index in range(6):
        masks[index, 4 : 9 + index, 6:20] = True
    masks[5, 25:28, 25:30] = True
    noise = torch.from_numpy(rng.random((10, 32, 32)).astype(np.float32))
    return 0.7 * noise + 0.3 * masks, image_set(masks)


def test_the_protocols_differ_exactly_in_masks_thresholds_and_epoch() -> None:
    # A defect of 4 x 4 pixels, of which truncation leaves the inner four.
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 2:6, 2:6] = True
    inner = torch.zeros_like(masks)
    inner[0, 3:5, 3:5] = True
    test = image_set(masks, inner)
    # The whole defect at 0.52 and four normal pixels at 0.51: none of the 21 thresholds
    # separates them.
    maps = torch.zeros(2, 8, 8)
    maps[masks] = 0.52
    maps[1, 0, :4] = 0.51
    strict, paper = score(maps, Truth.of(test, "strict")), score(maps, Truth.of(test, "paper"))
    assert strict["pixel_f1_max"] == pytest.approx(1)
    # At 0.5: 4 true positives, and 12 of the truncated rim and 4 normal pixels are false.
    assert paper["pixel_f1_max"] == pytest.approx(2 * 4 / (2 * 4 + 16))
    assert strict["pixel_ap"] == pytest.approx(1)
    assert paper["pixel_ap"] == pytest.approx(4 / 16)
    for name in ("image_auroc", "image_ap", "image_f1_max"):
        assert strict[name] == paper[name]
    same = image_set(masks)
    both = score(maps, Truth.of(same, "strict")), score(maps, Truth.of(same, "paper"))
    assert both[0]["pixel_ap"] == both[1]["pixel_ap"]
    assert both[0]["pixel_f1_max"] == pytest.approx(1)
    assert both[1]["pixel_f1_max"] == pytest.approx(2 * 16 / (2 * 16 + 4))


def test_paper_takes_the_best_epoch_and_strict_the_last() -> None:
    names = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro")
    history = {
        1: dict.fromkeys(names, 0.5) | {"pixel_f1_max": 0.99},
        2: dict.fromkeys(names, 0.8) | {"pixel_f1_max": 0.1},
        3: dict.fromkeys(names, 0.7) | {"pixel_f1_max": 0.3},
    }
    assert chosen_epoch(history, "paper") == 2
    assert chosen_epoch(history, "strict") == 3


def test_truncation_leaves_pixels_wholly_inside() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 1:6] = True
    # To half the size each new pixel is the mean of a 2 x 2 block.
    blocks = F.avg_pool2d(mask[None, None].double(), 2)[0, 0]
    assert torch.equal(truncate(mask, 4), blocks == 1)
    assert torch.equal(truncate(mask, 8), mask)
    whole = torch.ones(373, 247, dtype=torch.bool)
    assert truncate(whole, 128).all()


def test_image_scores_are_the_largest_window_mean() -> None:
    maps = torch.rand(2, 256, 256)
    padded = F.pad(maps, (10, 10, 10, 10)).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(padded, (21, 21), (1, 2))
    expected = windows.mean((3, 4), dtype=np.float64).max((1, 2))
    np.testing.assert_allclose(image_scores(maps).numpy(), expected, atol=1e-6)


def test_focal_loss_is_written_out() -> None:
    logits, mask = torch.randn(2, 2, 5, 7), torch.rand(2, 5, 7) > 0.5
    p = logits.softmax(dim=1)
    true = torch.where(mask, p[:, 1], p[:, 0])
    torch.testing.assert_close(
        focal_loss(logits, mask), (-((1 - true) ** 2) * true.log()).mean()
    )


def test_the_detector_has_draems_size() -> None:
    """Parameters of DRAEM's discriminative network by its layer list, with 3 input channels."""

    def block(before: int, after: int, last: int | None = None) -> int:
        last = after if last is None else last
        return sum(9 * a * b + b + 2 * b for a, b in ((before, after), (after, last)))

    w = 8
    down = [(3, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w), (8 * w, 8 * w)]
    ups = [(8, 8), (8, 4), (4, 2), (2, 1), (1, 1)]
    joins = [(16, 8), (12, 4), (6, 2), (3, 1), (2, 1)]
    expected = sum(block(*widths) for widths in down)
    expected += sum(9 * a * b * w * w + 3 * b * w for a, b in ups)
    expected += sum(block(a * w, b * w) for a, b in joins) + 9 * w * 2 + 2
    detector = DetectorUNet(w)
    assert sum(weight.numel() for weight in detector.parameters()) == expected
    assert detector(torch.rand(1, 3, 64, 32)).shape == (1, 2, 64, 32)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_resample_of_everything_once_is_the_metric_itself(noisy, protocol) -> None:
    maps, test = noisy
    maps = torch.round(maps * 64) / 64  # No more levels than bins, so that nothing is lost.
    once = resampled(maps, Truth.of(test, protocol), np.ones((1, 10)))[:, 0]
    exact = score(maps, Truth.of(test, protocol))
    np.testing.assert_allclose(once, [exact[name] for name in METRICS], atol=1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_resample_equals_scoring_the_images_it_drew(noisy, protocol) -> None:
    maps, test = noisy
    maps = torch.round(maps * 64) / 64
    weights = resample_weights(test.anomalous, "wood")
    drawn = np.repeat(np.arange(10), weights[3].astype(int))
    again = image_set(test.masks[drawn])
    expected = score(maps[drawn], Truth.of(again, protocol))
    metrics = resampled(maps, Truth.of(test, protocol), weights[3:4])[:, 0]
    np.testing.assert_allclose(metrics, [expected[name] for name in METRICS], atol=1e-9)


def test_binning_moves_the_metrics_little(noisy) -> None:
    maps, test = noisy
    exact = score(maps, Truth.of(test, "strict"))
    once = resampled(maps, Truth.of(test, "strict"), np.ones((1, 10)))[:, 0]
    np.testing.assert_allclose(once, [exact[name] for name in METRICS], atol=2e-3)


def test_resamples_keep_good_and_defective_apart(noisy) -> None:
    weights = resample_weights(noisy[1].anomalous, "wood")
    assert weights.shape == (RESAMPLES, 10)
    assert (weights[:, :6].sum(1) == 6).all()
    assert (weights[:, 6:].sum(1) == 4).all()
    assert not np.array_equal(weights, resample_weights(noisy[1].anomalous, "tin"))


def test_seeds_are_drawn_again_and_pair_across_sources() -> None:
    rng = np.random.default_rng(0)
    first = [[rng.normal(size=(7, RESAMPLES)) for _ in range(3)] for _ in range(2)]
    second = [[values + 0.25 for values in seeds] for seeds in first]
    difference = mean_over_trainings(second) - mean_over_trainings(first)
    np.testing.assert_allclose(difference, 0.25)
    # Two categories whose seeds are the constants 0, 1 and 2: means of six draws.
    fixed = [[np.full((1, RESAMPLES), float(seed)) for seed in range(3)]] * 2
    means = mean_over_trainings(fixed)
    assert np.isin(np.round(means * 6, 6), np.arange(13)).all()
    assert means.std() == pytest.approx(np.sqrt(2 / 3 / 6), abs=0.03)
    low, high = interval(means)[:, 0]
    assert 0 < low < 1 < high < 2


def test_nan_is_left_out() -> None:
    values = np.array([[0.2, np.nan, np.nan], [0.4, 0.6, np.nan]])
    np.testing.assert_allclose(nan_mean(values, axis=0), [0.3, 0.6, np.nan])
    np.testing.assert_allclose(nan_mean(values, axis=(0, 1)), 0.4)
    many = np.linspace(0, 1, 1001)
    many[::10] = np.nan
    low, high = interval(np.stack([many, np.full(1001, np.nan)]))
    assert low[0] == pytest.approx(0.025, abs=2e-3)
    assert high[0] == pytest.approx(0.975, abs=2e-3)
    assert np.isnan([low[1], high[1]]).all()
    # A category without the metric leaves the mean to the others.
    categories = [[np.full((1, 5), 0.5)], [np.full((1, 5), np.nan)]]
    np.testing.assert_allclose(mean_over_trainings(categories), 0.5)


@pytest.mark.parametrize(
    ("seeds", "over"), [(1, "test images."), (2, "test images and seeds.")]
)
def test_tables_say_what_intervals_are_over(seeds: int, over: str) -> None:
    rng = np.random.default_rng(0)
    rows = {
        name: Row(rng.random(2), rng.random((2, 9)), rng.random((seeds, 2)), {})
        for name in ("real", "real+a")
    }
    tables = comparison_tables(rows, ["AP", "AUROC"], ("a", "b"), "strict", "")
    assert tables[0].note.endswith(f"bootstrap over {over}")
    assert f"paired by {over}" in tables[1].note


def test_sources_are_compared_with_photographs_and_with_pasted_ones() -> None:
    def row(value: float, spread: float) -> Row:
        resamples = value + spread * np.linspace(-1, 1, 1001)[None]
        return Row(np.array([value]), resamples, np.array([[value]]), {})

    rows = {
        "real": row(0.2, 0.1),
        "real+copy-paste": row(0.4, 0.2),
        "real+a": row(0.35, 0.2),
    }
    _, alone, pasted = comparison_tables(rows, ["AP"], ("", ", by x"), "", "")
    assert (alone.title, pasted.title) == (
        "Against real alone, by x",
        "Against real+copy-paste, by x",
    )
    # Paired: what both have in common is no doubt about their difference.
    assert [source for source, *_ in alone.rows] == ["real+copy-paste", "real+a"]
    assert pasted.rows[1] == ("real+a", "-5.0 [-5.0, -5.0]")
    assert pasted.rows[0] == ("real", "-20.0 [-29.5, -10.5]")
    del rows["real+copy-paste"]
    assert len(comparison_tables(rows, ["AP"], ("", ""), "", "")) == 2
