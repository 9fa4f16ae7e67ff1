import numpy as np
import pytest
from scipy import ndimage

from acontrol.generation.paste import feather_px, paste


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


def test_inside_the_drawing_is_taken_as_it_is() -> None:
    normal, drawn, mask = images()
    for blend in ("feather", "hard"):
        assert (paste(normal, drawn, mask, blend, 2)[mask] == drawn[mask]).all()


def test_the_fade_lies_between_both_images() -> None:
    normal, drawn = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 240, np.uint8)
    mask = np.zeros((9, 9), bool)
    mask[:, :3] = True
    result = paste(normal, drawn, mask, "feather", 2)
    assert result[4, :, 0].tolist() == [240, 240, 240, 160, 80, 0, 0, 0, 0]


def test_poisson_takes_away_a_shift_of_colour_and_keeps_the_texture() -> None:
    """A drawing that is the normal image, only darker and with a dot, loses the darkness."""
    normal = images()[0] // 2 + 60
    mask = images()[2]
    drawn = normal - 25
    drawn[15, 25] = 0
    result = paste(normal, drawn, mask, "poisson", 2).astype(int)
    gap = np.abs(result - normal).max(axis=2)
    gap[15, 25] = 0
    assert gap.max() <= 1
    assert (result[15, 25] < normal[15, 25] - 30).all()


def test_poisson_of_a_whole_image_has_nothing_to_meet() -> None:
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
    found = [ndimage.laplace(one[..., 0]) for one in (result, drawn.astype(float))]
    inner = ndimage.binary_erosion(mask)
    assert np.abs(found[0] - found[1])[inner].max() <= 4  # Eight pixels rounded by a half.


def test_the_fade_follows_the_enlargement() -> None:
    assert [feather_px(side, 64) for side in (16, 64, 640)] == [1, 2, 20]
