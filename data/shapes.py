"""The object classes of the sample set: each is an outline filled with a texture.

An outline is a polygon (n x 2 float64, columns u and v) about as large as the square [-1, 1] x [-1, 1]. A texture maps
coordinates u, v (float32 arrays of one shape) and a phase in 0..1 to a boolean array: which of two colours a point has.
Its period belongs to the same square, so a texture grows and shrinks with its object.
"""

from collections.abc import Callable

import numpy as np

Outline = Callable[[], np.ndarray]
Texture = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _polar(radii: np.ndarray | float, angles: np.ndarray) -> np.ndarray:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _turn(corners: int, start: float = -np.pi / 2) -> np.ndarray:
    return start + 2 * np.pi * np.arange(corners) / corners


def disc() -> np.ndarray:
    """A circle of 48 corners."""
    return _polar(1.0, _turn(48))


def square() -> np.ndarray:
    """A square with upright sides."""
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)


def triangle() -> np.ndarray:
    """An equilateral triangle."""
    return _polar(1.15, _turn(3))


def star() -> np.ndarray:
    """A star of five points."""
    return _polar(np.where(np.arange(10) % 2, 0.5, 1.1), _turn(10))


def hexagon() -> np.ndarray:
    """A regular hexagon."""
    return _polar(1.05, _turn(6))


def cross() -> np.ndarray:
    """A plus sign with arms of 0.8 width."""
    arm, end = 0.4, 1.0
    corner = np.array([[arm, -end], [arm, -arm], [end, -arm]])
    turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([corner @ turn for turn in turns])


def crescent() -> np.ndarray:
    """A moon whose horns point to the right."""
    outer = _polar(1.0, np.linspace(0.25 * np.pi, 1.75 * np.pi, 33))
    inner = _polar(0.78, np.linspace(1.65 * np.pi, 0.35 * np.pi, 25))[1:-1]
    return np.concatenate([outer, inner + [0.4, 0.0]])


def heart() -> np.ndarray:
    """A heart with its tip at the bottom."""
    t = _turn(48)
    u = 16 * np.sin(t) ** 3
    v = -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    return np.stack([u, v], axis=1) / 16


def striped(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Four level stripes."""
    return (2 * v + phase) % 1 < 0.5


def dotted(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Dots on a grid, two to a side."""
    return np.hypot((u + phase) % 1 - 0.5, (v + phase) % 1 - 0.5) < 0.3


def checked(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """A chessboard, four fields to a side."""
    return (np.floor(2 * u + phase) + np.floor(2 * v + phase)) % 2 < 1


def ringed(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Rings around the centre."""
    return (1.8 * np.hypot(u, v) + phase) % 1 < 0.5


def rayed(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Four rays from the centre."""
    return (np.arctan2(v, u) * 2 / np.pi + phase) % 1 < 0.5


def plain(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """One colour."""
    return np.zeros(u.shape, dtype=bool)


def waved(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Upright zigzag bands."""
    zigzag = np.abs((1.5 * v) % 1 - 0.5)
    return (2 * u + zigzag + phase) % 1 < 0.5


def halved(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """A left half and a right half; the phase moves the border a little."""
    return u < 0.4 * (phase - 0.5)


# Name: outline, texture and hue in turns from red, as of ripe fruit: typical of the class, yet not telling it alone.
CLASSES: dict[str, tuple[Outline, Texture, float]] = {
    'checked_triangle': (triangle, checked, 0.00),
    'dotted_square': (square, dotted, 0.50),
    'halved_heart': (heart, halved, 0.875),
    'plain_cross': (cross, plain, 0.375),
    'rayed_hexagon': (hexagon, rayed, 0.125),
    'ringed_star': (star, ringed, 0.625),
    'striped_disc': (disc, striped, 0.25),
    'waved_crescent': (crescent, waved, 0.75),
}
