import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from acontrol.pipelines import compositing
from acontrol.pipelines.compositing import feather_px, limit_saturation, paste, saturation


def images(seed=0):
    rng = np.random.default_rng(seed)
    normal, drawn = rng.integers(0, 256, (2, 40, 50, 3)).astype(np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:20, 15:40] = True
    return normal, drawn, mask


@pytest.mark.parametrize("blend", ["feather", "poisson", "hard"])
def test_outside_the_mask_nothing_changes(blend) -> None:
    normal, drawn, mask = images()
    before = normal.copy()
    result = paste(normal, drawn, mask, blend, 2)
    assert (normal == before).all()
    assert (result[~mask] == normal[~mask]).all()
    assert (result[mask] != normal[mask]).any()


def test_deep_inside_the_drawing_is_copied() -> None:
    normal, drawn, mask = images()
    deep = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=2)
    assert (paste(normal, drawn, mask, "feather", 2)[deep] == drawn[deep]).all()
    assert (paste(normal, drawn, mask, "hard", 2)[mask] == drawn[mask]).all()


def test_the_fade_interpolates_between_both_images() -> None:
    normal, drawn = np.zeros((9, 12, 3), np.uint8), np.full((9, 12, 3), 240, np.uint8)
    mask = np.zeros((9, 12), bool)
    mask[:, :6] = True
    result = paste(normal, drawn, mask, "feather", 2)
    assert result[4, :, 0].tolist() == [240, 240, 240, 240, 160, 80, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("thickness", [1, 2, 3])
def test_a_line_thinner_than_the_fade_is_drawn_in_full_along_its_middle(thickness) -> None:
    normal, drawn = np.zeros((20, 30, 3), np.uint8), np.full((20, 30, 3), 240, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[8 : 8 + thickness, 2:28] = True
    column = paste(normal, drawn, mask, "feather", 5)[:, 15, 0]
    assert column.max() == 240
    assert (column[mask[:, 15]] > 0).all()


@pytest.mark.parametrize("thickness", [4, 6, 9])
def test_a_thin_defect_is_not_made_faint(thickness: int) -> None:
    """Faded up to its middle a crack would lose a third of its contrast and more."""
    normal, drawn = np.zeros((30, 30, 3), np.uint8), np.full((30, 30, 3), 240, np.uint8)
    mask = np.zeros((30, 30), bool)
    mask[8 : 8 + thickness, 2:28] = True
    column = paste(normal, drawn, mask, "feather", 5)[:, 15, 0]
    assert column[mask[:, 15]].mean() > 0.75 * 240


@pytest.mark.parametrize("width", [3, 20])
def test_a_crack_that_leaves_a_stain_is_as_strong_as_one_alone(width: int) -> None:
    normal, drawn = np.zeros((80, 200, 3), np.uint8), np.full((80, 200, 3), 240, np.uint8)
    mask = np.zeros((80, 200), bool)
    mask[38:41, 70:190] = True
    alone = paste(normal, drawn, mask, "feather", width)
    mask[20:60, 10:70] = True
    both = paste(normal, drawn, mask, "feather", width)
    assert (both[:, 80:] == alone[:, 80:]).all() and (alone[38:41, 80:190] == 240).all()
    assert 0 < both[40, 10, 0] < both[40, 11, 0] < 240, "the stain fades"


@pytest.mark.parametrize("blend", ["feather", "poisson", "hard"])
def test_grey_on_grey_stays_grey(blend) -> None:
    normal, drawn, mask = images()
    normal = np.repeat(normal[..., :1], 3, axis=2)
    result = paste(normal, limit_saturation(drawn, 0), mask, blend, 2)
    assert not saturation(result).any()
    assert (result[mask] != normal[mask]).any()


def test_saturation_is_limited_and_grey_level_and_hue_stay() -> None:
    drawn = images()[1]
    limited = limit_saturation(drawn, 40)
    assert saturation(limited).max() <= 41  # Each channel is rounded.
    before, after = (np.asarray(Image.fromarray(p).convert("L")) for p in (drawn, limited))
    assert np.abs(before.astype(int) - after).max() <= 1
    assert (limited.argmax(axis=2) == drawn.argmax(axis=2)).mean() > 0.95
    pale = saturation(drawn) <= 40
    assert (limited[pale] == drawn[pale]).all()


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


def large() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rough images of odd sides, and a mask with holes, islands and a part at the border."""
    rng = np.random.default_rng(4)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, 141, 203, 3)), (0, 9, 9, 0))
    noise = 30 * noise / noise.std() + rng.normal(scale=8, size=noise.shape) + 120
    normal, drawn = np.clip(noise, 0, 255).astype(np.uint8)
    y, x = np.ogrid[:141, :203]
    radius = np.hypot(y - 70, x - 100)
    mask = (radius < 65) & (radius > 12) | (radius < 5) | (x + 0 * y < 20)
    return normal, drawn, mask


def test_poisson_of_a_large_mask_solves_only_small_systems_directly(monkeypatch) -> None:
    normal, drawn, mask = large()
    direct = paste(normal, drawn, mask, "poisson", 2).astype(int)
    sizes = []

    def solve(matrix, right, own=compositing.spsolve):
        sizes.append(len(right))
        return own(matrix, right)

    monkeypatch.setattr(compositing, "spsolve", solve)
    monkeypatch.setattr(compositing, "_DIRECT", 500)
    monkeypatch.setattr(compositing, "_COARSEST", 500)
    result = paste(normal, drawn, mask, "poisson", 2)
    assert max(sizes) <= 500 < mask.sum()
    assert (result[~mask] == normal[~mask]).all()
    gap = np.abs(result - direct)[mask]
    assert gap.max() <= 2 and gap.mean() < 0.05
    assert np.abs(result.astype(int) - drawn)[mask].mean() > 10


def test_the_fade_does_not_depend_on_how_many_rows_are_faded_at_once(monkeypatch) -> None:
    normal, drawn, mask = large()
    mask[:, 180:] = False
    mask[100:118, 120:] = True  # As thick as a pixel's alpha can depend on.
    whole = paste(normal, drawn, mask, "feather", 4)
    monkeypatch.setattr(compositing, "_STRIP", 1)
    assert (paste(normal, drawn, mask, "feather", 4) == whole).all()
