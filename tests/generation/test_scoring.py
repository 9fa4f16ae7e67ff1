import math

import numpy as np
import pytest
from scipy import ndimage

from acontrol.generation import scoring
from acontrol.generation.scoring import changed, psnr, refined, ssim


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    normal = rng.integers(60, 200, (48, 48, 3)).astype(np.uint8)
    mask = np.zeros((48, 48), bool)
    mask[10:30, 10:30] = True
    return rng, normal, mask


def test_an_autoencoders_error_is_no_change(scene) -> None:
    rng, normal, mask = scene
    decoded = np.clip(normal + rng.normal(0, 12, normal.shape), 0, 255).astype(np.uint8)
    assert changed(normal, decoded, mask).sum() / mask.sum() < 0.15
    assert not changed(normal, normal, mask).any()


def test_a_drawing_is_a_change_and_only_inside(scene) -> None:
    rng, normal, mask = scene
    decoded = np.clip(normal + rng.normal(0, 5, normal.shape), 0, 255).astype(np.uint8)
    decoded[10:30, 10:20] = 0
    decoded[40:44, 40:44] = 0  # A leak far from the mask is not its filling.
    change = changed(normal, decoded, mask)
    assert not (change & ~mask).any()
    assert change[11:29, 11:19].all()
    assert 0.45 < change.sum() / mask.sum() < 0.65


def test_grain_that_was_drawn_anew_is_no_change(scene) -> None:
    """Or a label without a visible defect would pass the gate. A fine scratch is one."""
    rng, _, mask = scene
    grain = rng.normal(120, 10, (2, 48, 48, 1)).repeat(3, axis=3).astype(np.uint8)
    normal, drawn = grain[0], np.where(mask[..., None], grain[1], grain[0])
    assert changed(normal, drawn, mask).sum() / mask.sum() < 0.1
    drawn[10:30, 18:24] -= 25
    assert changed(normal, drawn, mask)[12:28, 18:24].mean() > 0.9
    smooth = np.full((48, 48, 3), 120, np.uint8)
    scratched = smooth.copy()
    scratched[12:28, 20] -= 40
    assert changed(smooth, scratched, mask)[12:28, 20].all()


def test_the_refined_mask_has_no_specks_and_no_holes(scene) -> None:
    _, _, mask = scene
    change = np.zeros_like(mask)
    change[12:24, 12:24] = True
    change[17, 17] = False
    change[28, 28] = True
    expected = np.zeros_like(mask)
    expected[12:24, 12:24] = True
    assert (refined(change, mask) == expected).all()
    assert not refined(np.zeros_like(mask), mask).any()


def test_the_background_is_measured_outside_the_mask(scene) -> None:
    _, normal, mask = scene
    result = normal.copy()
    result[mask] = 0
    assert psnr(normal, result, mask) is None
    value = ssim(normal, result, mask)
    assert value is not None
    assert value < 1  # Windows that reach into the mask see it.
    assert ssim(normal, normal, mask) == 1
    assert ssim(normal, result, np.ones_like(mask)) is None
    assert psnr(normal, result, np.ones_like(mask)) is None


def test_psnr_by_hand(scene) -> None:
    _, normal, mask = scene
    result = normal.copy()
    result[~mask] += 5
    assert psnr(normal, result, mask) == pytest.approx(20 * math.log10(255 / 5))


def test_strips_and_boxes_change_no_score(scene, monkeypatch) -> None:
    """What is worked on in strips is what the whole image gives."""
    rng, _, _ = scene
    normal = rng.integers(60, 200, (90, 70, 3)).astype(np.uint8)
    mask = np.zeros((90, 70), bool)
    mask[30:60, 20:40] = True
    wide = ndimage.gaussian_filter(rng.normal(0, 1, normal.shape), (2, 2, 0))
    moved = normal + rng.normal(0, 9, normal.shape) + 15 * wide / wide.std()
    drawn = np.clip(moved, 0, 255).astype(np.uint8)
    partly = normal.copy()
    partly[25:66, 12:50] = drawn[25:66, 12:50]

    def scores():
        return [
            (psnr(normal, image, mask), ssim(normal, image, mask), changed(normal, image, mask))
            for image in (drawn, partly)
        ]

    whole = scores()
    monkeypatch.setattr(scoring, "_STRIP", 70 * 5)
    for (one, two, three), (first, second, third) in zip(whole, scores(), strict=True):
        assert one == first
        assert two == pytest.approx(second, abs=1e-6)
        assert (three == third).all() and 0 < three.sum() < mask.sum()


def test_ssim_by_hand(scene) -> None:
    """Against the formula written out, with Gaussian windows."""
    rng, normal, _ = scene
    result = np.clip(normal + rng.normal(0, 20, normal.shape), 0, 255).astype(np.uint8)
    mask = np.ones((48, 48), bool)
    mask[20:28, 20:28] = False

    def blur(image):
        return ndimage.gaussian_filter(image, 1.5, radius=5)

    values = []
    for channel in range(3):
        x, y = (image[..., channel].astype(float) for image in (result, normal))
        mx, my = blur(x), blur(y)
        vx, vy, both = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values.append(
            (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        )
    assert ssim(normal, result, mask) == pytest.approx(
        np.mean(values, axis=0)[~mask].mean(), abs=1e-4
    )
