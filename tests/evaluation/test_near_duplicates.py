"""Another photograph of a piece is found by its texture, and different pieces are not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.near_duplicates import other_photographs, textures

SIDE = 96


def piece(seed: int) -> np.ndarray:
    """A surface of its own, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), (3, 1))
    return grain / np.abs(grain).max()


def photograph(surface: np.ndarray, seed: int) -> np.ndarray:
    """Of a surface, at an exposure of its own, lit from a side of its own, with noise."""
    rng = np.random.default_rng(1000 + seed)
    light = np.linspace(*rng.uniform(-60, 60, 2), SIDE)[None]
    noise = rng.normal(scale=1, size=surface.shape)
    made = rng.uniform(100, 150) + rng.uniform(15, 30) * surface + light + noise
    return made.clip(0, 255).astype(np.uint8)


def pictures(images: list[np.ndarray], name: str) -> ImageSet:
    pixels = torch.from_numpy(np.stack(images))[:, None].repeat(1, 3, 1, 1)
    blank = torch.zeros(len(images), *pixels.shape[2:], dtype=torch.bool)
    files = tuple(Path(f"{name}/{place}.png") for place in range(len(images)))
    kinds = ("crack",) * len(images)
    return ImageSet(pixels, blank, blank, kinds, files, tuple(map(str, files)))


def test_the_same_piece_at_another_exposure_is_found() -> None:
    normals = pictures([photograph(piece(n), n) for n in range(100, 112)], "normals")
    training = pictures([photograph(piece(n), n) for n in range(5)], "training")
    # Pieces 3 and 1 again, and three new ones.
    seen = [(3, 50), (20, 51), (21, 52), (1, 53), (22, 54)]
    test = pictures([photograph(piece(n), exposure) for n, exposure in seen], "test")
    assert other_photographs(test, training, normals) == [
        (Path("test/0.png"), Path("training/3.png")),
        (Path("test/3.png"), Path("training/1.png")),
    ]


def test_parts_that_are_all_alike_tell_nothing() -> None:
    """Aligned parts of one kind share their edges: no likeness is another photograph then."""
    drawing = piece(0)

    def part(n: int) -> np.ndarray:
        return photograph(drawing + 0.1 * piece(n), n)

    normals = pictures([part(n) for n in range(1, 9)], "normals")
    test, training = pictures([part(20)], "test"), pictures([part(30)], "training")
    near_duplicates = float(textures(test.images) @ textures(training.images).T)
    assert near_duplicates > 0.8
    assert other_photographs(test, training, normals) == []


@pytest.mark.parametrize("side", [32, 63])
def test_small_images_tell_nothing(side: int) -> None:
    one = pictures([photograph(piece(1), n)[:side, :side] for n in range(3)], "a")
    assert other_photographs(one, one, one) == []


def test_textures_are_correlations() -> None:
    images = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8)
    found = textures(images)
    product = found @ found.T
    torch.testing.assert_close(product.diagonal(), torch.ones(3))
    np.testing.assert_allclose(product.numpy(), np.corrcoef(found.numpy()), atol=1e-5)
