"""The object classes of the sample set: each is an outline filled with a texture.

An outline is a polygon (n x 2 float64, columns u and v) about as large as the square [-1, 1] x [-1, 1]. A texture maps
coordinates u, v (float32 arrays of one shape) and a phase in 0..1 to a boolean array: which of two colors a point has.
Its period belongs to the same square, so a texture grows and shrinks with its object.
"""

from collections.abc import Callable

import numpy as np

Texture = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def polar(radii: np.ndarray | float, angles: np.ndarray) -> np.ndarray:
    """Points (n x 2) at these distances from the origin, in these directions (n)."""
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def turn(corners: int) -> np.ndarray:
    """So many directions, evenly spread, from straight up on."""
    return -np.pi / 2 + 2 * np.pi * np.arange(corners) / corners


def cross() -> np.ndarray:
    """A plus sign with arms of 0.8 width."""
    arm, end = 0.4, 1.0
    corner = np.array([[arm, -end], [arm, -arm], [end, -arm]])
    turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([corner @ turn for turn in turns])


def crescent() -> np.ndarray:
    """A moon whose horns point to the right."""
    outer = polar(1.0, np.linspace(0.25 * np.pi, 1.75 * np.pi, 33))
    inner = polar(0.78, np.linspace(1.65 * np.pi, 0.35 * np.pi, 25))[1:-1]
    return np.concatenate([outer, inner + [0.4, 0.0]])


def heart() -> np.ndarray:
    """A heart with its tip at the bottom."""
    t = turn(48)
    u = 16 * np.sin(t) ** 3
    v = -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    return np.stack([u, v], axis=1) / 16


TEXTURES: dict[str, Texture] = {
    'checked': lambda u, v, phase: (np.floor(2 * u + phase) + np.floor(2 * v + phase)) % 2 < 1,  # four fields to a side
    'dotted': lambda u, v, phase: np.hypot((u + phase) % 1 - 0.5, (v + phase) % 1 - 0.5) < 0.3,  # two dots to a side
    'halved': lambda u, v, phase: u < 0.4 * (phase - 0.5),  # left and right; the phase moves the border a little
    'plain': lambda u, v, phase: np.zeros(u.shape, dtype=bool),
    'rayed': lambda u, v, phase: (np.arctan2(v, u) * 2 / np.pi + phase) % 1 < 0.5,  # four rays from the center
    'ringed': lambda u, v, phase: (1.8 * np.hypot(u, v) + phase) % 1 < 0.5,
    'striped': lambda u, v, phase: (2 * v + phase) % 1 < 0.5,  # four level stripes
    'waved': lambda u, v, phase: (2 * u + np.abs((1.5 * v) % 1 - 0.5) + phase) % 1 < 0.5,  # upright zigzag bands
}
# Outline, texture, and hue in turns from red, as of ripe fruit: typical of the class, yet not telling it alone.
CLASSES = {
    'checked_triangle': (polar(1.15, turn(3)), TEXTURES['checked'], 0.00),
    'dotted_square': (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float), TEXTURES['dotted'], 0.50),
    'halved_heart': (heart(), TEXTURES['halved'], 0.875),
    'plain_cross': (cross(), TEXTURES['plain'], 0.375),
    'rayed_hexagon': (polar(1.05, turn(6)), TEXTURES['rayed'], 0.125),
    'ringed_star': (polar(np.where(np.arange(10) % 2, 0.5, 1.1), turn(10)), TEXTURES['ringed'], 0.625),
    'striped_disc': (polar(1.0, turn(48)), TEXTURES['striped'], 0.25),
    'waved_crescent': (crescent(), TEXTURES['waved'], 0.75),
}
