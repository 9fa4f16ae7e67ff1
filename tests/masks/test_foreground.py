import numpy as np
import pytest
from PIL import Image, ImageDraw

from acontrol.masks.foreground import corrected, foreground, resized, shared_foreground
from acontrol.masks.shape import iou


def scene(background: int, product: int, noise: float = 4, size: int = 200) -> tuple:
    """A bright or dark disc on a plain background, and its mask."""
    rng = np.random.default_rng(0)
    picture = Image.new("L", (size, size), 0)
    ImageDraw.Draw(picture).ellipse((40, 60, 150, 170), fill=255)
    disc = np.asarray(picture) > 0
    grey = np.where(disc, product, background) + rng.normal(0, noise, disc.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2), disc


@pytest.mark.parametrize(("background", "product"), [(20, 180), (230, 90)])
def test_an_object_on_a_plain_background_is_found(background: int, product: int) -> None:
    image, disc = scene(background, product)
    assert iou(foreground(image), disc) > 0.95


def test_a_texture_is_product_everywhere() -> None:
    rng = np.random.default_rng(0)
    grain = rng.integers(60, 200, (150, 90, 3)).astype(np.uint8)
    assert foreground(grain).all()
    assert foreground(np.full((64, 64, 3), 128, np.uint8)).all()


def test_a_spoilt_estimate_is_replaced_by_the_shared_place() -> None:
    image, disc = scene(20, 180)
    shared = shared_foreground([foreground(image)] * 3)
    assert shared is not None
    everywhere = np.ones_like(disc)
    assert iou(corrected(everywhere, shared), disc) > 0.9
    good = foreground(image)
    assert corrected(good, shared) is good
    assert corrected(everywhere, None) is everywhere


def test_products_in_different_places_have_no_shared_place() -> None:
    boxes = []
    for left in (0, 40, 80):
        box = np.zeros((128, 128), bool)
        box[20:60, left : left + 40] = True
        boxes.append(box)
    assert shared_foreground(boxes) is None
    assert shared_foreground(boxes[:2]) is None
    assert resized(boxes[0], (64, 32)).shape == (64, 32)
