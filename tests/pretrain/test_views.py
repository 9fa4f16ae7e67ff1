import numpy as np
import pytest
import torch
from PIL import Image

from acontrol.pretrain.views import Photograph, augmented

HEIGHT, WIDTH = 120, 200


def photograph(*boxes: tuple[int, int, int, int]) -> Photograph:
    """Red is the column, green the row; blue marks the defects, where the mask is set."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(WIDTH)[None], np.arange(HEIGHT)[:, None]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    pixels[..., 2] = 255 * mask
    return Photograph(Image.fromarray(pixels), Image.fromarray(mask))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_square_is_of_original_pixels_at_the_scale(scale: float) -> None:
    source, corners = photograph(), set()
    for seed in range(20):
        image, mask = source.square(np.random.default_rng(seed), 32, (scale,))
        columns, rows = image[0].float(), image[1].float()
        assert image.shape == (3, 32, 32) and not mask.any()
        # Bicubic is not exact at the border.
        inner = slice(3, -3)
        right, down = columns.diff(dim=1)[:, inner], rows.diff(dim=0)[inner]
        assert float((right.mean(1) - 1 / scale).abs().max()) < 0.1
        assert float((down.mean(0) - 1 / scale).abs().max()) < 0.1
        if scale == 1:
            assert bool((right == 1).all()) and bool((down == 1).all()), "pixel by pixel"
        corners.add((int(columns[0, 0]), int(rows[0, 0])))
    assert len(corners) > 10, "anywhere"


def test_between_two_scales() -> None:
    steps = []
    for seed in range(30):
        image, _ = photograph().square(np.random.default_rng(seed), 32, (0.5, 1))
        steps.append(float(image[0].float().diff(dim=1).mean()))
    assert min(steps) < 1.2 and max(steps) > 1.8
    assert min(steps) > 0.95 and max(steps) < 2.05


def test_the_defect_is_anywhere_inside_and_whole() -> None:
    source = photograph((90, 50, 100, 58))
    lefts, tops = set(), set()
    for seed in range(60):
        _, mask = source.square(np.random.default_rng(seed), 32, (1.0,))
        assert int(mask.sum()) == 80, "whole"
        rows, columns = np.nonzero(mask[0].numpy())
        lefts.add(int(columns.min()))
        tops.add(int(rows.min()))
    assert min(lefts) < 5 and max(lefts) > 17
    assert min(tops) < 5 and max(tops) > 19


def test_in_a_corner_and_larger_than_the_square() -> None:
    for box in ((0, 0, 4, 4), (WIDTH - 4, HEIGHT - 4, WIDTH, HEIGHT), (10, 20, 190, 24)):
        for seed in range(20):
            _, mask = photograph(box).square(np.random.default_rng(seed), 32, (1.0,))
            assert mask.any()


def test_a_small_photograph_stays_square() -> None:
    """Its largest square is magnified: nothing is squashed, and nothing is made up."""
    image, _ = photograph().square(np.random.default_rng(0), 256, (1.0,))
    step = HEIGHT / 256
    inner = image[:2, 20:-20, 20:-20].float()
    assert float(inner[0].diff(dim=1).mean()) == pytest.approx(step, abs=0.02)
    assert float(inner[1].diff(dim=0).mean()) == pytest.approx(step, abs=0.02)


def test_masks_follow_their_pixels() -> None:
    """Through crop, turn, mirror and brightness."""
    source, seen = photograph((90, 50, 97, 53), (60, 70, 63, 90)), set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image, mask = augmented(*source.square(rng, 32, (1.0,)), rng)
        assert torch.equal(image[2] > 100, mask[0])
        seen.add(int(image[2].max()))
    assert min(seen) < 230 and max(seen) == 255, "darker and brighter"


def test_eight_orientations() -> None:
    image = torch.zeros((3, 4, 4), dtype=torch.uint8)
    image[:, 0, 1] = 200
    places = set()
    for seed in range(80):
        turned, _ = augmented(image, image[:1] > 0, np.random.default_rng(seed))
        places.add(tuple(torch.nonzero(turned[0])[0].tolist()))
    assert len(places) == 8


def test_grey_stays_grey() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    grey = Photograph(Image.fromarray(levels).convert("RGB"), Image.new("1", (64, 64)))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image, _ = augmented(*grey.square(rng, 32, (0.6, 1.2)), rng)
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
