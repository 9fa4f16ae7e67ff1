"""The outlines of defects, and where on a product they go."""

import numpy as np
from PIL import Image, ImageDraw

from acontrol.data.drawing.canvas import (
    LIGHT_X,
    LIGHT_Y,
    FloatArray,
    Surface,
    Window,
    grid,
)


def place(rng: np.random.Generator, surface: Surface, reach: float) -> tuple[float, float]:
    """A centre that leaves about `reach` inside the picture, or inside the object."""
    angle, share, u, v = rng.uniform(0, 1, 4)
    if surface.disc is None:
        low, high = reach + 0.03, 0.97 - reach
        return float(low + u * (high - low)), float(low + v * (high - low))
    cx, cy, radius = surface.disc
    # Past the sewing holes where it fits, or a defect would be lost among them.
    away = max(0.1, radius * 0.92 - reach) * (0.75 + 0.25 * share)
    turn = 2 * np.pi * angle
    return float(cx + away * np.cos(turn)), float(cy + away * np.sin(turn))


def strokes(
    size: int, paths: list[tuple[FloatArray, FloatArray]], shift: float = 0.0
) -> FloatArray:
    """Coverage of ribbons given as points (k, 2) and widths (k,), moved off the light."""
    scale = 2 * size
    image = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(image)
    for points, widths in paths:
        run = np.gradient(points, axis=0)
        run /= np.maximum(np.hypot(run[:, 0], run[:, 1]), 1e-6)[:, None]
        across = np.stack((-run[:, 1], run[:, 0]), 1) * (widths / 2)[:, None]
        outline = np.concatenate((points + across, (points - across)[::-1]))
        outline = (outline - shift * np.array((LIGHT_X, LIGHT_Y))) * scale - 0.5
        pen.polygon([(float(px), float(py)) for px, py in outline], fill=255)
    return np.asarray(image.reduce(2), np.float32) / np.float32(255)


def blob(
    rng: np.random.Generator,
    size: int,
    centre: tuple[float, float],
    radius: float,
    rough: float,
    window: Window = (slice(None), slice(None)),
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """An irregular round outline: offsets from its centre and the distance, 1 on the edge."""
    x, y = grid(size)
    dx, dy = x[:, window[1]] - np.float32(centre[0]), y[window[0]] - np.float32(centre[1])
    # The outline is tabulated once by angle: far cheaper than cosines at every pixel.
    theta = np.linspace(-np.pi, np.pi, 2048, dtype=np.float32)
    squeeze, turn = rng.uniform(0.0, 0.16), rng.uniform(0, np.pi)
    edge = 1 + squeeze * np.cos(2 * theta - 2 * turn)
    for order in (3, 4, 5, 7, 10, 15):
        edge += rng.normal(0, rough / order) * 1.7 * np.cos(order * theta + rng.uniform(0, 7))
    inverse = (1 / (np.maximum(edge, 0.5) * radius)).astype(np.float32)
    angle = (np.arctan2(dy, dx) + np.float32(np.pi)) * np.float32(2047.9 / (2 * np.pi))
    return dx, dy, np.hypot(dx, dy) * inverse[np.minimum(angle.astype(np.int32), 2047)]
