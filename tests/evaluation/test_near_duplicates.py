"""Other photographs of a piece are found by texture, different pieces are not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from acontrol.data.textures import THRESHOLD, textures
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.near_duplicates import other_photographs

SIDE = 96


def piece(seed: int) -> np.ndarray:
    """A random surface, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), (3, 1))
    return grain / np.abs(grain).max()


def photograph(surface: np.ndarray, seed: int) -> np.ndarray:
    """A surface at a random exposure and lighting, with noise."""
    rng = np.random.default_rng(1000 + seed)
    light = np.linspace(*rng.uniform(-60, 60, 2), SIDE)[None]
    noise = rng.normal(scale=1, size=surface.shape)
    pixels = rng.uniform(100, 150) + rng.uniform(15, 30) * surface + light + noise
    return pixels.clip(0, 255).astype(np.uint8)


def image_set(images: list[np.ndarray], name: str) -> ImageSet:
    pixels = torch.from_numpy(np.stack(images))[:, None].repeat(1, 3, 1, 1)
    blank = torch.zeros(len(images), *pixels.shape[2:], dtype=torch.bool)
    files = tuple(Path(f"{name}/{index}.png") for index in range(len(images)))
    defects = ("crack",) * len(images)
    return ImageSet(pixels, blank, blank, defects, files, tuple(map(str, files)))


def test_the_same_piece_at_another_exposure_is_found() -> None:
    normals = image_set([photograph(piece(n), n) for n in range(100, 112)], "normals")
    training = image_set([photograph(piece(n), n) for n in range(5)], "training")
    # Pieces 3 and 1 again, and three new ones.
    seen = [(3, 50), (20, 51), (21, 52), (1, 53), (22, 54)]
    test = image_set([photograph(piece(n), exposure) for n, exposure in seen], "test")
    assert other_photographs(test, training, normals) == [
        (Path("test/0.png"), Path("training/3.png")),
        (Path("test/3.png"), Path("training/1.png")),
    ]


def test_parts_of_one_texture_tell_nothing() -> None:
    """Aligned parts share their edges, so that correlation does not show a leak."""
    drawing = piece(0)

    def part(n: int) -> np.ndarray:
        return photograph(drawing + 0.1 * piece(n), n)

    normals = image_set([part(n) for n in range(1, 9)], "normals")
    test, training = image_set([part(20)], "test"), image_set([part(30)], "training")
    correlation = float(textures(test.images) @ textures(training.images).T)
    assert correlation > THRESHOLD
    assert other_photographs(test, training, normals) == []


@pytest.mark.parametrize("side", [32, 63])
def test_small_images_tell_nothing(side: int) -> None:
    images = image_set([photograph(piece(1), n)[:side, :side] for n in range(3)], "a")
    assert other_photographs(images, images, images) == []


def test_textures_are_correlations() -> None:
    images = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8)
    vectors = textures(images)
    product = vectors @ vectors.T
    torch.testing.assert_close(product.diagonal(), torch.ones(3))
    np.testing.assert_allclose(product.numpy(), np.corrcoef(vectors.numpy()), atol=1e-5)
