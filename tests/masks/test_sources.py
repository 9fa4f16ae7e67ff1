"""Generated shapes keep the statistics of their training masks."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from acontrol.masks.listed import ListedMasks
from acontrol.masks.perlin import PerlinMasks, perlin_noise
from acontrol.masks.real import RealMasks
from acontrol.masks.shape import Mask, cut_out, sides_of
from acontrol.masks.statistics import distance, measure

SIZE = (96, 96)


def drawn(*box: float, size: tuple[int, int] = SIZE) -> Mask:
    picture = Image.new("L", size[::-1], 0)
    ImageDraw.Draw(picture).ellipse(box, fill=255)
    return np.asarray(picture) > 0


def whole(pixels: Mask) -> Mask:
    return np.pad(pixels, 2)


@pytest.fixture
def scratches() -> dict[str, Mask]:
    """Flat ellipses, all nearly horizontal."""
    return {f"{n}": drawn(20 + n, 30 + 2 * n, 60 + 3 * n, 38 + 2 * n) for n in range(6)}


def test_made_masks_stay_within_the_training_masks_statistics(
    scratches: dict[str, Mask],
) -> None:
    source, rng = RealMasks(scratches), np.random.default_rng(0)
    areas = [mask.mean() for mask in scratches.values()]
    made = [source.sample(SIZE, 1, rng) for _ in range(100)]
    shapes = [shape for shape in made if not isinstance(shape, str)]
    assert len(shapes) > 80
    for shape in shapes:
        share = shape.pixels.sum() / (SIZE[0] * SIZE[1])
        assert min(areas) * 0.99 <= share <= max(areas) * 1.01
        angle = measure(whole(shape.pixels)).angle
        assert min(angle, np.pi - angle) < np.radians(35)
        assert shape.origin in scratches
        assert shape.at is None
    assert len({shape.pixels.tobytes() for shape in shapes}) == len(shapes)


def test_made_masks_are_closer_to_real_ones_than_noise_is(scratches: dict[str, Mask]) -> None:
    rng = np.random.default_rng(0)
    real = list(scratches.values())
    made = {}
    for name, source in (("real", RealMasks(scratches)), ("perlin", PerlinMasks())):
        shapes = [source.sample(SIZE, 20, rng) for _ in range(80)]
        frames = []
        for shape in shapes:
            if not isinstance(shape, str):
                frame = np.zeros(SIZE, bool)
                frame[: shape.pixels.shape[0], : shape.pixels.shape[1]] = shape.pixels
                frames.append(frame)
        made[name] = distance(frames, real)
    assert made["real"] < 0.3 * made["perlin"]


def test_a_chipped_rim_stays_at_the_rim() -> None:
    masks = {f"{n}": drawn(-10, 10 + 8 * n, 10, 30 + 8 * n) for n in range(6)}
    source, rng = RealMasks(masks), np.random.default_rng(1)
    tops = set()
    for _ in range(40):
        shape = source.sample(SIZE, 1, rng)
        if isinstance(shape, str):
            continue
        frame = np.zeros(SIZE, bool)
        top, left = shape.at
        frame[top : top + shape.pixels.shape[0], left : left + shape.pixels.shape[1]] = (
            shape.pixels
        )
        assert sides_of(frame) == {"left"}
        tops.add(top)
    assert len(tops) > 10


@pytest.mark.parametrize("size", [(96, 96), (48, 160), (200, 120)])
def test_shapes_follow_the_images_size_and_the_seed(
    size: tuple[int, int], scratches: dict[str, Mask]
) -> None:
    for source in (RealMasks(scratches), PerlinMasks(), ListedMasks(scratches)):
        for seed in range(10):
            made = [source.sample(size, 30, np.random.default_rng(seed)) for _ in range(2)]
            if isinstance(made[0], str):
                assert made[0] == made[1]
                continue
            assert np.array_equal(made[0].pixels, made[1].pixels)
            assert made[0].pixels.sum() >= 30
            assert made[0].pixels.shape[0] <= size[0]
            assert made[0].pixels.shape[1] <= size[1]
            assert made[0].pixels[0].any()
            assert made[0].pixels[:, -1].any()


def test_a_listed_mask_keeps_its_place() -> None:
    mask = drawn(10, 20, 40, 50)
    shape = ListedMasks({"own": mask}).sample(SIZE, 1, np.random.default_rng(0))
    assert shape.at == (20, 10)
    assert np.array_equal(shape.pixels, cut_out(mask).pixels)
    half = ListedMasks({"own": mask}).sample((48, 48), 1, np.random.default_rng(0))
    assert half.at == (10, 5)
    reason = ListedMasks({"own": mask}).sample(SIZE, 5000, np.random.default_rng(0))
    assert reason == "own is smaller than one attention cell"


def test_noise_is_smooth_and_within_its_range() -> None:
    noise = perlin_noise((64, 96), (2, 4), np.random.default_rng(0))
    assert noise.shape == (64, 96)
    assert 0.3 < np.abs(noise).max() <= 1.01
    assert np.abs(np.diff(noise, axis=0)).max() < 0.2


def test_a_source_needs_masks() -> None:
    for source in (RealMasks, ListedMasks):
        with pytest.raises(ValueError, match="at least one mask"):
            source({})
    with pytest.raises(ValueError, match="empty"):
        RealMasks({"a": np.zeros(SIZE, bool)})
