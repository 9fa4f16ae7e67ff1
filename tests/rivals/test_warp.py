"""A reference's defect is put where it fits, and exactly where it is the mask's own."""

import numpy as np
import pytest
from scipy import ndimage

from acontrol.masks.perlin import perlin_blobs
from acontrol.rivals.copy_paste import pasted
from acontrol.rivals.warp import fits


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colours, none of them at the ends of the range."""
    grain = np.random.default_rng(seed).uniform(0, 1, (height, width, 3))
    smooth = ndimage.gaussian_filter(grain, (2, 2, 0))
    return (80 + 300 * np.abs(smooth - 0.5)).astype(np.uint8)


def wedge(height: int, width: int, top: int, left: int) -> np.ndarray:
    """No rotation of itself."""
    mask = np.zeros((height, width), bool)
    mask[top : top + 14, left : left + 6] = True
    mask[top : top + 5, left : left + 19] = True
    return mask


def test_a_mask_of_the_references_own_shape_takes_its_pixels_exactly() -> None:
    reference, image = photograph(50, 70, 1), photograph(60, 64, 2)
    source, mask = wedge(50, 70, 9, 20), wedge(60, 64, 31, 3)
    drawing = pasted(image, mask, reference, source)
    assert drawing.pasted is not None
    assert np.array_equal(drawing.pasted, mask)
    assert np.array_equal(drawing.pixels[~mask], image[~mask])
    # The surround's colour, and nothing else.
    gain = (drawing.pixels[mask] / reference[source]).mean(axis=0)
    assert np.abs(drawing.pixels[mask] - gain * reference[source]).max() < 1
    assert np.abs(gain - 1).max() > 0.01
    same = pasted(reference, source, reference, source)
    assert np.array_equal(same.pixels, reference)


@pytest.mark.parametrize("seed", [3, 35, 36])
def test_blobs_and_specks_are_exact_too(seed: int) -> None:
    """A smaller copy of something thin may cover as many pixels."""
    shape = perlin_blobs((40, 50), np.random.default_rng(seed))
    source, mask = np.zeros((100, 120), bool), np.zeros((90, 140), bool)
    source[10:50, 20:70] = mask[37:77, 61:111] = shape
    (fit,) = fits(source, mask)
    assert (fit.overlap, fit.similarity.scale, fit.similarity.angle) == (1, 1, 0)


@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (30, 1.0), (-75, 1.6), (15, 0.6)])
def test_a_turned_and_scaled_defect_is_found(angle: float, scale: float) -> None:
    source = wedge(64, 64, 20, 20)
    large = ndimage.zoom(source.astype(float), scale, order=1)
    turned = ndimage.rotate(np.pad(large, 24), angle, reshape=False, order=1) > 0.5
    (fit,) = fits(source, turned)
    assert fit.overlap > 0.85
    # scipy turns the other way round: its rows point down.
    assert abs(fit.similarity.angle + angle) <= 8 or abs(fit.similarity.angle - angle) <= 8
    assert fit.similarity.scale == pytest.approx(scale, rel=0.12)


def test_parts_far_apart_are_fitted_one_by_one() -> None:
    source = wedge(64, 64, 20, 20)
    mask = wedge(64, 160, 5, 5) | wedge(64, 160, 40, 130)
    parts = fits(source, mask)
    assert [int(part.mask.sum()) for part in parts] == [int(source.sum())] * 2
    drawing = pasted(photograph(64, 160, 3), mask, photograph(64, 64, 4), source)
    assert drawing.pasted is not None
    assert drawing.pasted.sum() > 0.9 * mask.sum()
    # As wholes, the defect would lie in the gap.
    assert not (drawing.pasted & ~mask).any()
