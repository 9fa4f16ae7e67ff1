import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from acontrol.data.crops import Crop, crops, target_view
from acontrol.pipelines.compositing import paste, paste_part


def disc(shape, *centres, radius=3):
    y, x = np.indices(shape)
    return np.any([(y - a) ** 2 + (x - b) ** 2 <= radius**2 for a, b in centres], axis=0)


def placed(crop: Crop, shape: tuple[int, ...]) -> np.ndarray:
    """Its mask in the whole image."""
    left, top, right, bottom = crop.box
    whole = np.zeros(shape, bool)
    whole[top:bottom, left:right] = crop.mask
    return whole


def test_at_zero_an_image_is_seen_whole() -> None:
    mask = disc((64, 80), (30, 30))
    (crop,) = crops(mask, 0, 32)
    assert crop.box == (0, 0, 80, 64)
    assert (crop.mask == mask).all()


def test_a_small_defect_on_a_large_image_is_seen_near() -> None:
    mask = disc((512, 400), (256, 200), radius=10)
    (crop,) = crops(mask, 4, 64)
    left, top, right, bottom = crop.box
    assert right - left == bottom - top == 4 * 21
    assert abs((left + right) / 2 - 200.5) <= 1
    assert crops(mask, 0, 64)[0].box == (0, 0, 400, 512)
    assert crops(mask, 2, 64)[0].box[2] - crops(mask, 2, 64)[0].box[0] == 42


def test_a_speck_is_enlarged_at_most_four_times() -> None:
    (crop,) = crops(disc((512, 512), (5, 5), radius=1), 4, 64)
    assert crop.box == (0, 0, 16, 16)


def test_far_components_have_crops_of_their_own_and_near_ones_share_one() -> None:
    mask = disc((512, 512), (100, 100), (100, 112), (400, 400))
    result = crops(mask, 4, 64)
    assert len(result) == 2
    assert sorted(int(crop.mask.sum()) for crop in result) == [29, 58]


@given(
    st.lists(st.tuples(st.integers(0, 89), st.integers(0, 119)), min_size=1, max_size=6),
    st.sampled_from([1, 1.5, 4, 100]),
)
def test_crops_cover_the_mask_and_none_draws_over_another(centres, scale) -> None:
    mask = disc((90, 120), *centres)
    result = crops(mask, scale, 32)
    assert (np.sum([placed(crop, mask.shape) for crop in result], axis=0) == mask).all()
    for crop in result:
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 90
        inside = np.zeros_like(mask)
        inside[top:bottom, left:right] = True
        for other in result:
            assert other is crop or not (inside & placed(other, mask.shape)).any()


def test_training_sees_the_square_that_drawing_draws_in() -> None:
    """Original pixels, not scaled ones; of two squares the one with most of the defect."""
    mask = disc((300, 400), (60, 70), (200, 300), radius=9)
    mask[60, 70] = False
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    image, region = target_view(Image.fromarray(pixels), Image.fromarray(mask), 4, 64)
    _, (left, top, right, bottom) = (crop.box for crop in crops(mask, 4, 64))
    assert (np.asarray(image) == pixels[top:bottom, left:right]).all()
    assert (np.asarray(region) == mask[top:bottom, left:right]).all()
    assert right - left == bottom - top == 4 * 19
    assert target_view(image, region, 0, 64) == (image, region)


@given(
    st.tuples(st.integers(0, 119), st.integers(0, 299)),
    st.tuples(st.integers(1, 120), st.integers(1, 300)),
    st.sampled_from([1, 4]),
    st.sampled_from([32, 50, 1000]),
)
def test_squares_along_a_long_defect_cover_it(corner, size, scale, limit) -> None:
    mask = np.zeros((120, 300), bool)
    mask[corner[0] :, corner[1] :][: size[0], : size[1]] = True
    mask[::3] = False  # Lines: components of their own.
    if not mask.any():
        return
    result = crops(mask, scale, 32, limit)
    assert (np.any([placed(crop, mask.shape) for crop in result], axis=0) == mask).all()
    for crop in result:
        left, top, right, bottom = crop.box
        assert max(right - left, bottom - top) <= limit


@given(
    st.lists(st.tuples(st.integers(0, 119), st.integers(0, 299)), min_size=2, max_size=4),
    st.sampled_from([24, 50, 96]),
)
def test_parts_of_a_bent_crack_lie_in_their_squares(corners, limit) -> None:
    picture = Image.new("1", (300, 120))
    ImageDraw.Draw(picture).line([(x, y) for y, x in corners], fill=1, width=3)
    mask = np.asarray(picture)
    if not mask.any():
        return
    parts = crops(mask, 4, 16, limit)
    assert (np.any([placed(part, mask.shape) for part in parts], axis=0) == mask).all()
    for part in parts:
        assert part.mask.any()
        if part.part is not None:
            assert ((part.weight > 0) == part.mask).all()


def test_a_limit_changes_nothing_for_what_fits() -> None:
    mask = disc((512, 400), (256, 200), (30, 30), radius=10)
    for crop, other in zip(crops(mask, 4, 64, 84), crops(mask, 4, 64), strict=True):
        assert crop.box == other.box
        assert (crop.mask == other.mask).all()
    near = crops(mask, 4, 64, 40)  # Room for the defect, not for four times it.
    assert [crop.box[2] - crop.box[0] for crop in near] == [40, 40]
    assert len(crops(mask, 0, 64, 40)) == 1


def test_squares_that_would_be_one_are_one() -> None:
    """Where the image is no larger than a square, parts would see nothing finer."""
    mask = np.zeros((90, 90), bool)
    mask[5:85, 5:85] = True
    (crop,) = crops(mask, 4, 32, 100)
    assert crop.box == (0, 0, 90, 90)
    assert (crop.mask == mask).all()


def in_parts(mask: np.ndarray, parts: list[Crop], levels: list[int]) -> np.ndarray:
    """Parts of these grey levels on black, one after the other."""
    black = np.zeros((*mask.shape, 3), np.uint8)
    drawn, before = black.copy(), np.zeros(mask.shape)
    for part, level in zip(parts, levels, strict=True):
        left, top, right, bottom = part.box
        here = np.s_[top:bottom, left:right]
        whole = black[here] + np.uint8(level)
        drawn[here] = paste_part(drawn[here], black[here], whole, part, before[here], 5)
        before[here] += part.weight
    assert before[mask].all()
    return drawn


@pytest.mark.parametrize("size", [(20, 380), (200, 380)])
def test_a_defect_drawn_in_equal_parts_is_as_if_drawn_at_once(size: tuple[int, int]) -> None:
    mask = np.zeros((220, 400), bool)
    mask[10 : 10 + size[0], 10 : 10 + size[1]] = True
    mask[12:16, 100:300] = False
    parts = crops(mask, 4, 64, 160)
    assert len(parts) > 2
    black = np.zeros((*mask.shape, 3), np.uint8)
    whole = paste(black, black + 200, mask, "feather", 5)
    drawn = in_parts(mask, parts, [200] * len(parts)).astype(int)
    assert np.abs(drawn - whole).max() <= 1
    assert not drawn[~mask].any()


def test_parts_of_unlike_brightness_have_no_seam() -> None:
    mask = np.zeros((300, 400), bool)
    mask[10:290, 10:390] = True
    parts = crops(mask, 4, 64, 160)
    levels = [100 + 100 * (number % 2) for number in range(len(parts))]
    drawn = in_parts(mask, parts, levels)[..., 0].astype(int)[20:-20, 20:-20]
    assert {100, 200} <= {*drawn.ravel().tolist()}
    steps = [np.abs(np.diff(drawn, axis=axis)).max() for axis in (0, 1)]
    assert max(steps) <= 100 / parts[0].shared + 1


def test_neighbouring_defects_do_not_weaken_each_other() -> None:
    mask = np.zeros((600, 1400), bool)
    mask[300:304, 20:620] = True
    mask[300:304, 650:1380] = True
    parts = crops(mask, 4, 64, 512)
    assert len({id(part.defect) for part in parts}) == 2
    drawn = in_parts(mask, parts, [200] * len(parts))
    assert (drawn[301, 25:615] >= 199).all() and (drawn[301, 655:1375] >= 199).all()


def test_training_sees_a_part_of_a_long_defect() -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:103, 20:380] = True
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    image, region = target_view(Image.fromarray(pixels), Image.fromarray(mask), 4, 64, 100)
    # Of eight spans of 45 px the second, the first that reaches over two neighbours.
    left, top, right, bottom = 37, 51, 137, 151
    assert image.size == (100, 100)
    assert (np.asarray(image) == pixels[top:bottom, left:right]).all()
    assert (np.asarray(region) == mask[top:bottom, left:right]).all()
