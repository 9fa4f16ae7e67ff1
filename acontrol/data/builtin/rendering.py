"""Render a product of the built-in data set, with or without a defect.

Layouts are in unit coordinates (the picture spans 0..1 on both axes, y pointing down), so one
seed gives one composition at every resolution. Pictures are painted at twice the size and
averaged down, which keeps thin lines smooth at 64 px. All products are lit from the upper left.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from acontrol.data.builtin.defects import (
    PAINTS,
    Painted,
    crack,
    dent,
    hole,
    scratch,
    spots,
    stain,
)
from acontrol.data.builtin.surface import FloatArray, Surface, grid, mix, step
from acontrol.data.builtin.textures import button, fabric, leather, metal, tile, wood

__all__ = ["DEFECTS", "PAINTS", "PRODUCTS", "render"]

SUPERSAMPLING = 2
# Below this coverage a pixel is left unchanged, so that the mask has no faint fringe.
ALPHA_THRESHOLD = 0.12

PRODUCTS: dict[str, Callable[[np.random.Generator, int], Surface]] = {
    "wood": wood,
    "fabric": fabric,
    "metal": metal,
    "tile": tile,
    "leather": leather,
    "button": button,
}
DEFECTS: dict[str, Callable[[np.random.Generator, Surface, str], Painted]] = {
    "scratch": scratch,
    "hole": hole,
    "stain": stain,
    "crack": crack,
    "dent": dent,
    "spots": spots,
}


def render(
    category: str,
    defect: str | None,
    attribute: str,
    seeds: tuple[list[int], list[int]],
    resolution: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Paint one product with and without its defect.

    Args:
        category: A key of `PRODUCTS`.
        defect: A key of `DEFECTS`, or None for a good product.
        attribute: The defect's attribute, such as the colour of a stain; "" if it has none.
        seeds: The seed words of the product and of the defect.
        resolution: Side of the pictures in pixels.

    Returns:
        The picture, the same picture without the defect (both (n, n, 3) uint8), and the
        defect's mask (n, n).
    """
    surface = PRODUCTS[category](np.random.default_rng(seeds[0]), resolution * SUPERSAMPLING)
    np.clip(surface.rgb, 0, 1, out=surface.rgb)
    normal = _to_bytes(surface.rgb)
    if defect is None:
        return normal.copy(), normal, np.zeros((resolution, resolution), np.bool_)
    painted, cover = DEFECTS[defect](np.random.default_rng(seeds[1]), surface, attribute)
    if surface.disc is not None:
        x, y = grid(resolution * SUPERSAMPLING)
        cx, cy, radius = surface.disc
        on = step(radius + 0.004, radius - 0.008, np.hypot(x - cx, y - cy))
        painted, cover = mix(surface.rgb, painted, on), cover * on
    mask = _shrink(cover) > ALPHA_THRESHOLD
    image = np.where(mask[..., None], _to_bytes(np.clip(painted, 0, 1)), normal)
    return image, normal, mask


def paint(
    normal: npt.NDArray[np.uint8], defect: str, attribute: str, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Paint a defect on a photograph of a surface.

    Args:
        normal: (n, n, 3).
        defect: A key of `DEFECTS`.
        attribute: The defect's attribute; "" if it has none.
        rng: All of its randomness.

    Returns:
        The picture (n, n, 3), and the defect's mask (n, n).
    """
    rgb = normal.astype(np.float32) / np.float32(255)
    rgb = rgb.repeat(SUPERSAMPLING, axis=0).repeat(SUPERSAMPLING, axis=1)
    core = normal.reshape(-1, 3).mean(axis=0) / 2  # Below the surface it is darker.
    surface = Surface(rgb, (int(core[0]), int(core[1]), int(core[2])))
    painted, cover = DEFECTS[defect](rng, surface, attribute)
    mask = _shrink(cover) > ALPHA_THRESHOLD
    return np.where(mask[..., None], _to_bytes(np.clip(painted, 0, 1)), normal), mask


def _shrink(field: FloatArray) -> FloatArray:
    """Average blocks of pixels down to the final size."""
    block = SUPERSAMPLING
    total = np.zeros_like(field[::block, ::block])
    for row in range(block):
        for column in range(block):
            total += field[row::block, column::block]
    return total / np.float32(block * block)


def _to_bytes(rgb: FloatArray) -> npt.NDArray[np.uint8]:
    return (_shrink(rgb) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
