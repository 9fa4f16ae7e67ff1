"""The products that stand on a ground."""

import numpy as np

from acontrol.data.drawing.canvas import (
    LIGHT_X,
    LIGHT_Y,
    Surface,
    grid,
    lighting,
    mix,
    noise,
    pick,
    shade,
    step,
    window,
)


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
