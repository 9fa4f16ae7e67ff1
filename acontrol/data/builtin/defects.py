"""The defects: each paints over a product and returns its coverage."""

import numpy as np
from PIL import Image, ImageDraw

from acontrol.data.builtin.surface import (
    LIGHT_X,
    LIGHT_Y,
    FloatArray,
    Rgb,
    Surface,
    Window,
    colour,
    grid,
    mix,
    noise,
    relief,
    shade,
    step,
    window,
)


def place(rng: np.random.Generator, surface: Surface, reach: float) -> tuple[float, float]:
    """A centre at least about `reach` inside the picture, or inside the object."""
    angle, share, u, v = rng.uniform(0, 1, 4)
    if surface.disc is None:
        low, high = reach + 0.03, 0.97 - reach
        return float(low + u * (high - low)), float(low + v * (high - low))
    cx, cy, radius = surface.disc
    # Outside the sewing holes if it fits, or a defect would be lost among them.
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
    # The outline is tabulated by angle: far cheaper than cosines at every pixel.
    theta = np.linspace(-np.pi, np.pi, 2048, dtype=np.float32)
    squeeze, turn = rng.uniform(0.0, 0.16), rng.uniform(0, np.pi)
    edge = 1 + squeeze * np.cos(2 * theta - 2 * turn)
    for order in (3, 4, 5, 7, 10, 15):
        edge += rng.normal(0, rough / order) * 1.7 * np.cos(order * theta + rng.uniform(0, 7))
    inverse = (1 / (np.maximum(edge, 0.5) * radius)).astype(np.float32)
    angle = (np.arctan2(dy, dx) + np.float32(np.pi)) * np.float32(2047.9 / (2 * np.pi))
    return dx, dy, np.hypot(dx, dy) * inverse[np.minimum(angle.astype(np.int32), 2047)]


# The picture with the defect, and how much of each pixel the defect covers.
Painted = tuple[FloatArray, FloatArray]

PAINTS: dict[str, Rgb] = {
    "red": (206, 18, 26),
    "blue": (24, 62, 205),
    "green": (18, 138, 46),
    "black": (20, 19, 22),
}


def scratch(rng: np.random.Generator, surface: Surface, attribute: str) -> Painted:
    """One long scratch and up to two next to it, light or dark."""
    size = surface.rgb.shape[0]
    scale = 0.8 if surface.disc else 1.0
    angle = rng.uniform(0, np.pi)
    if surface.grain is not None:
        angle = surface.grain + rng.uniform(0.45, np.pi - 0.45)
    cx, cy = place(rng, surface, 0.3 * scale)
    bend = rng.normal(0, 0.03)
    paths = []
    for number in range(int(rng.integers(1, 4))):
        length = rng.uniform(0.52, 0.78) * scale * (1 if number == 0 else 0.55)
        width = rng.uniform(0.028, 0.034) * (1 if number == 0 else 0.75)
        side = 0.0 if number == 0 else rng.choice((-1, 1)) * rng.uniform(0.045, 0.08)
        drift = 0.0 if number == 0 else rng.uniform(-0.12, 0.12)
        turn = angle + (0 if number == 0 else rng.normal(0, 0.06))
        t = np.linspace(-0.5, 0.5, 48)
        run, off = t * length + drift, (t * t * 4 - 1) * bend + side
        off = off + np.interp(t, np.linspace(-0.5, 0.5, 9), rng.normal(0, 0.004, 9))
        px = cx + run * np.cos(turn) - off * np.sin(turn)
        py = cy + run * np.sin(turn) + off * np.cos(turn)
        # Pressed hardest in the middle, so it runs out to a point at both ends.
        press = width * np.clip((1 - (2 * np.abs(t)) ** 3) * 1.1, 0.12, 1)
        press *= rng.uniform(0.72, 1.12, 48)
        paths.append((np.stack((px, py), 1).astype(np.float32), press.astype(np.float32)))
    line, lip = strokes(size, paths), strokes(size, paths, 0.013)
    # The tool skipped over the surface and cut deeper in some places than in others.
    bite = np.clip(0.86 + 0.16 * noise(rng, size, 70, 70), 0.5, 1)
    rgb = surface.rgb
    if attribute == "light":
        rgb = mix(rgb, rgb * 0.35, lip * 0.6)
        rgb = mix(rgb, rgb * 0.05 + 0.95, line * bite)
    else:
        rgb = mix(rgb, rgb * 0.4 + 0.6, lip * 0.5)
        rgb = mix(rgb, rgb * 0.12 + 0.02, line * bite)
    return rgb, np.maximum(line, lip * 0.6)


def crack(rng: np.random.Generator, surface: Surface, attribute: str) -> Painted:
    """A jagged crack with branches."""
    size = surface.rgb.shape[0]
    scale = 0.78 if surface.disc else 1.0
    cx, cy = place(rng, surface, 0.3 * scale)
    angle = rng.uniform(0, 2 * np.pi)
    length = rng.uniform(0.6, 0.85) * scale
    start = (cx - length / 2 * np.cos(angle), cy - length / 2 * np.sin(angle))
    trunk = _jagged(rng, start, angle, length)
    paths = [(trunk, _taper(len(trunk), 0.036, 0.018))]
    side = rng.choice((-1, 1))
    for share in np.sort(rng.uniform(0.15, 0.8, int(rng.integers(2, 5)))):
        joint = int(share * (len(trunk) - 1))
        turn = angle + side * rng.uniform(0.5, 1.05)
        twig = _jagged(rng, trunk[joint], turn, rng.uniform(0.16, 0.34) * scale)
        paths.append((twig, _taper(len(twig), 0.027, 0.016)))
        side = -side
    line, lip = strokes(size, paths), strokes(size, paths, 0.01)
    rgb = mix(surface.rgb, surface.rgb * 0.5 + 0.5, lip * 0.5)
    rgb = mix(rgb, surface.rgb * 0.1, line * 0.96)
    return rgb, np.maximum(line, lip * 0.5)


def _taper(count: int, first: float, last: float) -> FloatArray:
    """Widths along a crack, which closes to a point at both ends."""
    widths = np.linspace(first, last, count, dtype=np.float32)
    widths[[0, -1]] = 0.008
    return widths


def _jagged(
    rng: np.random.Generator,
    start: tuple[float, float] | FloatArray,
    angle: float,
    length: float,
) -> FloatArray:
    """A path that keeps its direction but changes course at every step, like a crack."""
    steps = max(4, round(length / 0.03))
    # Large slow turns and small quick ones; the sum of each brings it back on course.
    slow = np.interp(np.arange(steps), np.linspace(0, steps - 1, 4), rng.normal(0, 0.45, 4))
    course = angle + slow + rng.choice((-1, 1), steps) * rng.uniform(0.15, 0.75, steps)
    pace = length / steps * rng.uniform(0.6, 1.4, steps)
    moves = np.stack((pace * np.cos(course), pace * np.sin(course)), 1)
    path = np.concatenate((np.zeros((1, 2)), np.cumsum(moves, 0))) + np.asarray(start)
    jagged: FloatArray = path.astype(np.float32)
    return jagged


def hole(rng: np.random.Generator, surface: Surface, attribute: str) -> Painted:
    """A hole with a lifted collar; threads hang into it from a frayed edge."""
    size = surface.rgb.shape[0]
    radius = rng.uniform(0.085, 0.1) if surface.disc else rng.uniform(0.1, 0.145)
    centre = place(rng, surface, radius)
    rough = 0.035 + 0.06 * surface.fray
    dx, dy, gap = blob(rng, size, centre, radius, rough)
    facing = (dx * LIGHT_X + dy * LIGHT_Y) / np.maximum(np.hypot(dx, dy), 1e-4)
    soft = 1.5 / (size * radius)
    # A torn collar around it, lifted: lit where it faces the lamp, dark behind.
    collar = step(1.34, 1.05, gap)
    rgb = shade(surface.rgb, 1 + collar * (0.42 * facing - 0.1))
    inside = step(1 + soft, 1 - soft, gap)
    # The wall shows on the side away from the lamp, and the floor is in its own shadow.
    wall = mix(surface.rgb, colour(surface.core), np.full_like(gap, 0.75))
    wall = shade(wall, 0.5 - 0.5 * facing)
    floor = surface.rgb * 0.05 + 0.012
    deep = np.hypot(dx - LIGHT_X * 0.2 * radius, dy - LIGHT_Y * 0.2 * radius)
    deep = deep * gap / np.maximum(np.hypot(dx, dy), 1e-4)
    rgb = mix(rgb, mix(wall, floor, step(1.0, 0.86, deep)), inside)
    cover = np.maximum(inside, collar)
    if surface.fray < 1:
        return rgb, cover
    # Torn threads of both directions hang into the hole from its edge.
    ends = []
    for number in range(12):
        off = rng.uniform(-0.75, 0.75)
        edge = 1.08 * (1 - off * off) ** 0.5
        t = np.linspace(0, 1, 8)
        run = edge - t * rng.uniform(0.25, 0.85)
        side = off + t * t * rng.normal(0, 0.14)
        run = run if number % 2 else -run
        path = np.stack((run, side) if number // 2 % 2 else (side, run), 1)
        path = np.asarray(centre) + radius * path
        ends.append((path.astype(np.float32), np.linspace(0.02, 0.012, 8, dtype=np.float32)))
    threads = strokes(size, ends)
    light = np.quantile(surface.rgb.reshape(-1, 3)[::97], 0.8, axis=0).astype(np.float32)
    rgb = mix(rgb, shade(light, 0.72 - 0.25 * facing), threads)
    return rgb, np.maximum(cover, threads)


def dent(rng: np.random.Generator, surface: Surface, attribute: str) -> Painted:
    """A shallow bowl pressed into the surface."""
    size = surface.rgb.shape[0]
    radius = rng.uniform(0.1, 0.12) if surface.disc else rng.uniform(0.12, 0.15)
    _, _, gap = blob(rng, size, place(rng, surface, 1.2 * radius), radius, 0.02)
    # A smooth bowl with a slightly raised lip, which is what tells it from a stain.
    bowl = np.maximum(1 - gap * gap, 0)
    lip = np.exp(-(((gap - 1.02) / 0.13) ** 2))
    slope = relief((0.1 * lip - bowl**1.8) * np.float32(radius))
    cover = step(1.3, 1.12, gap)
    # A busy texture would hide a shallow dent.
    depth = min(1.05, 0.7 + 1.8 * float(surface.rgb.mean(-1).std()))
    lit = np.tanh(slope * 0.6) * depth - 0.12 * step(1.0, 0.2, gap)
    rgb = shade(surface.rgb, 1 + np.where(lit < 0, 0.85, 0.25) * lit * cover)
    shine = np.maximum(lit - 0.08, 0) * cover * 0.62
    return mix(rgb, np.ones(3, np.float32), shine), cover


def stain(rng: np.random.Generator, surface: Surface, attribute: str) -> Painted:
    """A spilt liquid with drops around it; its colour is a key of `PAINTS`."""
    size = surface.rgb.shape[0]
    radius = rng.uniform(0.125, 0.15) if surface.disc else rng.uniform(0.14, 0.18)
    centre = place(rng, surface, radius)
    _, _, gap = blob(rng, size, centre, radius, 0.13)
    gap = gap + 0.1 * noise(rng, size, 14, 14) + 0.03 * noise(rng, size, 48, 48)
    for _ in range(int(rng.integers(1, 4))):
        angle, far = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.35, 1.6)
        drop = (centre[0] + far * float(np.cos(angle)), centre[1] + far * float(np.sin(angle)))
        part = window(size, *drop, 0.06)
        near = blob(rng, size, drop, rng.uniform(0.02, 0.034), 0.08, part)[2]
        gap[part] = np.minimum(gap[part], near)
    cover = step(1.12, 0.82, gap)
    # The liquid sinks in: the texture still shows, and the colour gathers at the border.
    paint = colour(PAINTS[attribute])
    grey = surface.rgb.mean(-1, dtype=np.float32)
    texture = 0.35 + 0.65 * grey / np.maximum(grey[cover > 0.5].mean(), 0.05)
    border = np.exp(-(((gap - 0.86) / 0.12) ** 2))
    wash = 0.98 - 0.22 * border + 0.08 * noise(rng, size, 7, 7)
    liquid = shade(paint, texture * wash)
    return mix(surface.rgb, liquid.astype(np.float32), cover * (0.8 + 0.14 * border)), cover


def spots(rng: np.random.Generator, surface: Surface, attribute: str) -> Painted:
    """Dried drops of paint, apart from each other; the colour is a key of `PAINTS`."""
    size = surface.rgb.shape[0]
    paint = colour(PAINTS[attribute])
    wanted = int(rng.integers(4, 8))
    kept: list[tuple[float, float, float]] = []
    for u, v, share in rng.uniform(0, 1, (60, 3)):
        radius = 0.056 + 0.014 * share
        if surface.disc is None:
            px, py = 0.08 + 0.84 * u, 0.08 + 0.84 * v
        else:
            cx, cy, reach = surface.disc
            # Around the sewing holes, in which a black spot could not be seen.
            away, turn = 0.5 * reach + (0.48 * reach - radius) * u, 2 * np.pi * v
            px, py = cx + away * np.cos(turn), cy + away * np.sin(turn)
        apart = all(np.hypot(px - a, py - b) > radius + r + 0.03 for a, b, r in kept)
        if apart and len(kept) < wanted:
            kept.append((float(px), float(py), float(radius)))
    rgb, cover = surface.rgb.copy(), np.zeros((size, size), np.float32)
    for px, py, radius in kept:
        part = window(size, px, py, 1.5 * radius)
        dx, dy, gap = blob(rng, size, (px, py), radius, 0.06, part)
        drop = step(1.07, 0.9, gap)
        facing = (dx * LIGHT_X + dy * LIGHT_Y) / np.float32(radius)
        # Dried drops of paint: a thick border, and a little of the lamp on the upper side.
        tone = 1 + 0.12 * facing - 0.3 * np.exp(-(((gap - 0.86) / 0.14) ** 2))
        glint = np.hypot(dx - LIGHT_X * 0.4 * radius, dy - LIGHT_Y * 0.4 * radius)
        shine = step(0.36 * radius, 0.05 * radius, glint) * 0.3
        bead = mix(shade(paint, tone), np.ones(3, np.float32), shine)
        rgb[part] = mix(rgb[part], bead, drop * 0.93)
        cover[part] = np.maximum(cover[part], drop)
    return rgb, cover
