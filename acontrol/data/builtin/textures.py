"""The products: textures that fill the picture, and a button on its ground."""

import numpy as np

from acontrol.data.builtin.surface import (
    LIGHT_X,
    LIGHT_Y,
    FloatArray,
    Surface,
    grid,
    lighting,
    mix,
    noise,
    pick,
    relief,
    shade,
    step,
    window,
)


def wood(rng: np.random.Generator, size: int) -> Surface:
    """A planed board: rings cut lengthwise, fibre and pores."""
    x, y = grid(size)
    light, dark = pick(
        rng,
        (
            ((216, 170, 112), (142, 90, 46)),
            ((232, 194, 138), (178, 120, 66)),
            ((184, 132, 86), (104, 64, 36)),
        ),
    )
    # Rings cut at a shallow angle: ellipses drawn out along the grain, centre off the board.
    middle, end = rng.uniform(0.15, 0.85), float(rng.choice((-1, 1))) * rng.uniform(0.75, 1.3)
    warp = noise(rng, size, 4, 2) * 0.028 + noise(rng, size, 9, 3) * 0.008
    distance = np.hypot(y - middle + warp, (x - 0.5 - end) * rng.uniform(0.16, 0.3))
    phase = distance * rng.uniform(11, 15)
    part = phase - np.floor(phase)
    depth = rng.uniform(0.45, 1.0, 64).astype(np.float32)[phase.astype(np.int64) % 64]
    late = part**2 * step(1.0, 0.86, part) * depth * 1.25
    fibre = noise(rng, size, 110, 5)
    pores = step(1.3, 2.1, noise(rng, size, 150, 16)) * (0.35 + 0.65 * late)
    tone = 0.1 + 0.85 * late + 0.07 * fibre + 0.12 * noise(rng, size, 3, 2) + 0.4 * pores
    upright = bool(rng.integers(2))
    rgb = mix(light, dark, tone.T if upright else tone)
    rgb = shade(rgb, lighting(rng, size, 0.14))
    return Surface(rgb, core=(120, 78, 44), grain=np.pi / 2 if upright else 0.0, fray=0.25)


def fabric(rng: np.random.Generator, size: int) -> Surface:
    """A plain weave of thick threads."""
    x, y = grid(size)
    warp_colour, weft_colour = pick(
        rng,
        (
            ((222, 208, 178), (196, 180, 148)),
            ((204, 205, 210), (172, 174, 182)),
            ((214, 190, 200), (188, 160, 174)),
            ((222, 192, 120), (200, 164, 92)),
        ),
    )
    threads = int(rng.integers(12, 16))
    across = x * threads + noise(rng, size, 6, 3) * 0.09 + rng.uniform(2, 4)
    down = y * threads + noise(rng, size, 3, 6) * 0.09 + rng.uniform(2, 4)
    u, v = across - np.floor(across) - 0.5, down - np.floor(down) - 0.5
    column, row = across.astype(np.int64), down.astype(np.int64)
    # Each thread is round, rises over one crossing and dives below the next; whichever of the
    # two is higher is seen, which draws every float out past its own cell.
    over = (1 - 2 * ((column + row) % 2)).astype(np.float32)
    warp_round = np.sqrt(np.maximum(1 - (u * 2.08) ** 2, 0))
    weft_round = np.sqrt(np.maximum(1 - (v * 2.08) ** 2, 0))
    warp_high = 0.55 * warp_round + 0.5 * over * np.cos(np.float32(np.pi) * v)
    weft_high = 0.55 * weft_round - 0.5 * over * np.cos(np.float32(np.pi) * u)
    warp_up = warp_high > weft_high
    side, along = np.where(warp_up, u, v), np.where(warp_up, v, u)
    high = np.maximum(warp_high, weft_high)
    tone = 0.22 + 0.8 * step(-0.1, 1.15, high) - 0.25 * side
    tone += 0.05 * np.cos(np.float32(2 * np.pi) * (along * 2.5 + side * 1.6))
    uneven = rng.normal(0, 0.05, (2, 32)).astype(np.float32)
    tone += np.where(warp_up, uneven[0][column % 32], uneven[1][row % 32])
    tone += 0.035 * noise(rng, size, 90, 90) + 0.02 * noise(rng, size, 3, 3)
    rgb = mix(weft_colour, warp_colour, warp_up.astype(np.float32))
    rgb = shade(rgb, tone)
    rgb = shade(rgb, lighting(rng, size, 0.16))
    return Surface(rgb.astype(np.float32), core=(150, 138, 118), fray=1.0)


def metal(rng: np.random.Generator, size: int) -> Surface:
    """Brushed sheet metal with two bands of reflected light."""
    x, y = grid(size)
    shadow, shine = pick(
        rng,
        (
            ((104, 110, 118), (214, 219, 226)),
            ((112, 112, 112), (216, 216, 214)),
            ((92, 100, 112), (200, 210, 222)),
        ),
    )
    brush = 0.5 * noise(rng, size, 64, 2) + 0.6 * noise(rng, size, 128, 3)
    brush += 0.5 * noise(rng, size, 256, 6) + 0.25 * noise(rng, size, 256, 40)
    # Brushed metal spreads a lamp's reflection into a band across the brushing.
    bend = rng.uniform(-0.25, 0.25) * (y - 0.5) + 0.012 * brush
    first, second = rng.uniform(0.15, 0.45), rng.uniform(0.6, 0.9)
    band = np.exp(-(((x + bend - first) / rng.uniform(0.14, 0.2)) ** 2))
    band = band + 0.6 * np.exp(-(((x + bend - second) / rng.uniform(0.08, 0.14)) ** 2))
    tone = 0.28 + 0.52 * band.astype(np.float32) + 0.085 * brush
    rgb = shade(mix(shadow, shine, tone), lighting(rng, size, 0.12))
    return Surface(rgb, core=(205, 208, 212), grain=0.0, fray=0.3)


def tile(rng: np.random.Generator, size: int) -> Surface:
    """Glazed tiles with a window mirrored in them, and their joints."""
    x, y = grid(size)
    glaze, grout = pick(
        rng,
        (
            ((156, 196, 204), (222, 220, 212)),
            ((206, 190, 160), (122, 112, 100)),
            ((168, 192, 168), (226, 224, 214)),
            ((196, 182, 200), (116, 112, 116)),
        ),
    )
    pitch = rng.uniform(0.56, 0.72)
    columns, rows = (x - rng.uniform(0, 1)) / pitch, (y - rng.uniform(0, 1)) / pitch
    column, row = np.floor(columns), np.floor(rows)
    u, v = (columns - column - 0.5) * pitch, (rows - row - 0.5) * pitch
    # Signed distance to a square with rounded corners: negative on the tile.
    half, corner = pitch / 2 - 0.019, 0.04
    qx, qy = np.abs(u) - (half - corner), np.abs(v) - (half - corner)
    edge = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0)
    edge = (edge - corner).astype(np.float32)
    uneven = rng.normal(0, 0.035, (8, 8)).astype(np.float32)
    tone = 1 + uneven[row.astype(np.int64) % 8, column.astype(np.int64) % 8]
    tone = tone + 0.025 * noise(rng, size, 4, 4)
    # Glaze thins over the bevel: lit on the sides that face the lamp, dark on the others.
    bevel = relief(-(np.maximum(edge + 0.045, 0) ** 2) * 11)
    tone += np.clip(bevel, -0.5, 0.5) * 0.55
    speckle = step(1.85, 2.5, noise(rng, size, 72, 72)) * 0.42
    body = shade(glaze, tone)
    body = mix(body, glaze * 0.3, speckle)
    # A window mirrored in the glaze, at the same place of every tile.
    slant = u * 0.5 + v
    gloss = step(-0.24, -0.2, slant) * step(-0.08, -0.12, slant) * step(0.0, -0.06, edge)
    gloss = gloss * step(-0.28, -0.22, u - v * 0.4) * step(0.2, 0.05, u)
    body = mix(body, np.ones(3, np.float32), gloss.astype(np.float32) * 0.34)
    sand = 0.9 + 0.08 * noise(rng, size, 100, 100)
    # The tile stands above the joint and shades it on the side away from the lamp.
    sand = sand - 0.3 * step(0.02, 0.0, edge)
    rgb = mix(body, shade(grout, sand), step(-0.004, 0.006, edge))
    rgb = shade(rgb, lighting(rng, size, 0.14))
    return Surface(rgb.astype(np.float32), core=(196, 150, 116), fray=0.35)


def leather(rng: np.random.Generator, size: int) -> Surface:
    """Grained hide with one seam."""
    x, y = grid(size)
    hide, thread = pick(
        rng,
        (
            ((182, 108, 58), (240, 222, 184)),
            ((196, 142, 88), (250, 240, 216)),
            ((160, 142, 128), (240, 236, 228)),
            ((170, 118, 84), (244, 226, 190)),
        ),
    )
    cells = int(rng.integers(12, 16))
    height = _pebbles(rng, size, cells)
    height = height + 0.15 * noise(rng, size, 30, 30) * height
    upright, flip = bool(rng.integers(2)), bool(rng.integers(2))
    at = np.float32(rng.uniform(0.1, 0.15))
    side, along = (x, y) if upright else (y, x)
    side = 1 - side if flip else side
    # The seam draws the hide down into a groove and every stitch pulls at it.
    beat = along * 9 + rng.uniform(0, 1)
    pitch = (beat - np.floor(beat) - 0.5) / 9
    groove = np.exp(-(((side - at) / 0.035) ** 2))
    shape = height * 0.02 * (1 - 0.6 * groove) - 0.016 * groove
    shape = (shape + 0.012 * noise(rng, size, 4, 4)).astype(np.float32)
    tone = 0.84 + np.clip(relief(shape), -1.1, 1.1) * 0.36 + 0.2 * (height - 0.5)
    tone += 0.045 * noise(rng, size, 3, 3)
    rgb = shade(hide, tone)
    sheen = np.clip(tone - 1.02, 0, 1) * 0.5
    rgb = mix(rgb, np.ones(3, np.float32), sheen)
    # Capsules laid along the seam, each a little askew.
    lean = side - at + pitch * 0.16
    off = np.hypot(lean, np.maximum(np.abs(pitch) - 0.026, 0)).astype(np.float32)
    rgb = mix(rgb, hide * 0.3, step(0.036, 0.014, off) * 0.75)
    twist = 0.86 + 0.14 * np.cos(2 * np.pi * (pitch * 60 + lean * 30))
    body = (twist * (1 - (off / 0.026) ** 2)).astype(np.float32)
    rgb = mix(rgb, shade(thread, np.clip(body, 0, 1)), step(0.02, 0.015, off))
    rgb = shade(rgb, lighting(rng, size, 0.2))
    return Surface(rgb.astype(np.float32), core=(206, 176, 138), fray=0.3)


def _pebbles(rng: np.random.Generator, size: int, cells: int) -> FloatArray:
    """Rounded pebbles with creases between them: the gap to the second nearest seed."""
    x, y = grid(size)
    jitter = rng.uniform(0.08, 0.92, (2, cells + 2, cells + 2)).astype(np.float32)
    across, down = x * cells, y * cells
    column, row = across[0].astype(np.int64), down[:, 0].astype(np.int64)
    u, v = across - np.floor(across), down - np.floor(down)
    nearest = np.full((size, size), 9.0, np.float32)
    second = nearest.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            seed_x, seed_y = jitter[:, row + 1 + dy][:, :, column + 1 + dx]
            gap = (seed_x + (dx - u)) ** 2 + (seed_y + (dy - v)) ** 2
            np.minimum(second, np.maximum(nearest, gap), out=second)
            np.minimum(nearest, gap, out=nearest)
    return step(0.0, 0.5, np.sqrt(second) - np.sqrt(nearest))


def button(rng: np.random.Generator, size: int) -> Surface:
    """A sewing button on cloth, with two holes or four."""
    x, y = grid(size)
    body, ground = pick(
        rng,
        (
            ((226, 204, 166), (86, 96, 112)),
            ((222, 164, 84), (206, 204, 198)),
            ((216, 172, 166), (104, 96, 92)),
            ((190, 196, 204), (150, 120, 96)),
        ),
    )
    radius = rng.uniform(0.38, 0.42)
    cx, cy = rng.uniform(0.465, 0.535), rng.uniform(0.465, 0.535)
    dx, dy = (x - cx) / radius, (y - cy) / radius
    rho = np.hypot(dx, dy)
    cloth = 1 + 0.03 * noise(rng, size, 120, 120) + 0.03 * noise(rng, size, 3, 3)
    shadow = step(1.3, 0.82, np.hypot(dx - 0.12, dy - 0.16))
    base = shade(ground, cloth * (1 - 0.62 * shadow))
    base = shade(base, lighting(rng, size, 0.16))
    # A raised rim around a shallow dish; towards is how much a spot faces the lamp.
    towards = (dx * LIGHT_X + dy * LIGHT_Y) / np.maximum(rho, 1e-3)
    rim = np.clip((rho - 0.7) / 0.3, 0, 1)
    dish = -np.sin(2 * np.pi * rim) * towards * 0.3 - 0.07 * rho * towards
    dish = dish - 0.25 * step(0.95, 1.0, rho)
    swirl = noise(rng, size, 5, 5) + 0.5 * noise(rng, size, 11, 11)
    tone = 0.93 + dish + 0.035 * swirl + 0.012 * noise(rng, size, 90, 90)
    disc = shade(body, tone)
    glint = np.exp(-(((rho - 0.88) / 0.055) ** 2)) * step(0.55, 1.0, towards)
    disc = mix(disc, np.ones(3, np.float32), (glint * 0.85).astype(np.float32))
    count = 4 if rng.uniform() < 0.7 else 2
    turn = rng.uniform(0, np.pi)
    for number in range(count):
        angle = turn + 2 * np.pi * number / count
        px, py = 0.25 * float(np.cos(angle)), 0.25 * float(np.sin(angle))
        part = window(size, cx + radius * px, cy + radius * py, 0.25 * radius)
        hx, hy = dx[:, part[1]] - px, dy[part[0]] - py
        gap = np.hypot(hx, hy)
        facing = (hx * LIGHT_X + hy * LIGHT_Y) / np.maximum(gap, 1e-3)
        lip = np.exp(-(((gap - 0.15) / 0.03) ** 2)) * facing
        sunk = shade(disc[part], 1 - 0.3 * lip)
        disc[part] = mix(sunk, ground * 0.22, step(0.14, 0.105, gap))
    cover = step(1 + 1 / (size * radius), 1 - 1 / (size * radius), rho)
    rgb = mix(base, disc, cover).astype(np.float32)
    return Surface(rgb, core=(160, 132, 104), disc=(cx, cy, radius))
