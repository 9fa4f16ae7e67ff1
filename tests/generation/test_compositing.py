import math

import numpy as np
import pytest
from scipy import ndimage

from acontrol.generation.compositing import changed, feather_px, fidelity, paste, refined


def images(seed=0):
    rng = np.random.default_rng(seed)
    normal, drawn = rng.integers(0, 256, (2, 40, 50, 3)).astype(np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:20, 15:40] = True
    return normal, drawn, mask


@pytest.mark.parametrize("blend", ["feather", "poisson", "hard"])
def test_outside_mask_and_fade_nothing_changes(blend) -> None:
    normal, drawn, mask = images()
    before = normal.copy()
    result = paste(normal, drawn, mask, blend, 2)
    fade = ndimage.distance_transform_edt(~mask) < 3 if blend == "feather" else mask
    assert (normal == before).all()
    assert (result[~fade] == normal[~fade]).all()
    assert (result[mask] != normal[mask]).any()


def test_inside_the_drawing_is_copied() -> None:
    normal, drawn, mask = images()
    for blend in ("feather", "hard"):
        assert (paste(normal, drawn, mask, blend, 2)[mask] == drawn[mask]).all()


def test_the_fade_interpolates_between_both_images() -> None:
    normal, drawn = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 240, np.uint8)
    mask = np.zeros((9, 9), bool)
    mask[:, :3] = True
    result = paste(normal, drawn, mask, "feather", 2)
    assert result[4, :, 0].tolist() == [240, 240, 240, 160, 80, 0, 0, 0, 0]


def test_poisson_removes_a_shift_of_colour_and_keeps_the_texture() -> None:
    """The drawing is the normal image, darker and with a dot; only the dot remains."""
    normal = images()[0] // 2 + 60
    mask = images()[2]
    drawn = normal - 25
    drawn[15, 25] = 0
    result = paste(normal, drawn, mask, "poisson", 2).astype(int)
    gap = np.abs(result - normal).max(axis=2)
    gap[15, 25] = 0
    assert gap.max() <= 1
    assert (result[15, 25] < normal[15, 25] - 30).all()


def test_poisson_of_a_whole_image_is_the_drawing() -> None:
    normal, drawn, mask = images()
    assert (paste(normal, drawn, np.ones_like(mask), "poisson", 2) == drawn).all()


def test_poisson_solves_its_equation() -> None:
    """Inside, the result's Laplacian is the drawing's; checked where nothing is clipped."""
    rng = np.random.default_rng(3)
    normal, drawn = rng.integers(100, 156, (2, 30, 30, 3)).astype(np.uint8)
    mask = ndimage.binary_dilation(rng.random((30, 30)) > 0.97, iterations=3)
    mask[0] = mask[-1] = mask[:, 0] = mask[:, -1] = False
    result = paste(normal, drawn, mask, "poisson", 1).astype(float)
    expected = drawn.astype(float)
    expected[~mask] += (normal.astype(float) - drawn)[~mask]
    laplacian = ndimage.laplace(result[..., 0])
    wanted = ndimage.laplace(drawn[..., 0].astype(float))
    inner = ndimage.binary_erosion(mask)
    assert np.abs(laplacian - wanted)[inner].max() <= 4  # Eight pixels rounded by a half.


def test_the_fade_follows_the_enlargement() -> None:
    assert [feather_px(side, 64) for side in (16, 64, 640)] == [1, 2, 20]


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


def test_fidelity_is_measured_outside_the_mask(scene) -> None:
    _, normal, mask = scene
    result = normal.copy()
    result[mask] = 0
    exact = fidelity(normal, result, mask)
    assert exact is not None
    assert exact.psnr is None
    assert exact.ssim is not None
    assert exact.ssim < 1  # Windows that reach into the mask see it.
    equal = fidelity(normal, normal, mask)
    assert equal is not None
    assert equal.ssim == pytest.approx(1)
    assert fidelity(normal, result, np.ones_like(mask)) is None


def test_psnr_by_hand(scene) -> None:
    _, normal, mask = scene
    result = normal.copy()
    result[~mask] += 5
    scores = fidelity(normal, result, mask)
    assert scores is not None
    assert scores.psnr == pytest.approx(20 * math.log10(255 / 5))


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
    scores = fidelity(normal, result, mask)
    assert scores is not None
    assert scores.ssim == pytest.approx(np.mean(values, axis=0)[~mask].mean(), abs=1e-4)
