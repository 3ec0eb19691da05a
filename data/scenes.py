"""Render the scenes of the sample set: textured shapes of strongly varying size on a cluttered background.

A scene is SCENE x SCENE pixels. One object alone is a close-up; several objects lie in cells of a 2 x 2 grid. Positions
are in pixels from the scene's left upper corner: pixel (x, y) covers the square from (x, y) to (x + 1, y + 1).
"""

from typing import NamedTuple

import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageDraw, ImageFilter

from data.shapes import CLASSES, Texture
from utils.segmentation import IGNORED

SCENE = 256
CELL = SCENE // 2
MARGIN = 4  # free pixels around an object, so that borders of neighbours never meet
CELL_SIZES = (20, CELL - 2 * MARGIN)  # smallest and largest longer side of an object in a cell, in pixels
CLOSE_UP_SIZES = (96, SCENE - 2 * MARGIN)
SMALLEST_FRAME = 56
MAX_TURN = np.pi / 6
HUE_SPREAD = 0.05  # standard deviation, in turns; the classes' own hues are 0.125 apart
SUPERSAMPLING = 3
CLASS_NAMES = tuple(CLASSES)

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded


class Thing(NamedTuple):
    """An object: its label in 1..len(CLASS_NAMES), its polygon (n x 2 float64: x, y) and a square around it."""

    label: int
    polygon: np.ndarray
    frame: Box


class Scene(NamedTuple):
    """A picture (H x W x 3 uint8), its mask (H x W uint8: labels, 0 background, 255 ignored border), its objects."""

    picture: np.ndarray
    mask: np.ndarray
    things: list[Thing]


def render_scene(rng: np.random.Generator, labels: tuple[int, ...]) -> Scene:
    """Draw a scene with one object per label (1..len(CLASS_NAMES)): none, one close-up, or two to four in cells."""
    canvas = _clutter(rng, _background(rng))
    mask = np.zeros((SCENE, SCENE), dtype=np.uint8)
    cells = _cells(rng, len(labels))
    things = [_paint(rng, canvas, mask, label, cell) for label, cell in zip(labels, cells, strict=True)]
    canvas += rng.normal(0, 0.015, canvas.shape)
    image = Image.fromarray(mask)  # pixels on both sides of an object's edge are ignored, as in VOC
    inner, outer = (np.asarray(image.filter(part(3))) for part in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    return Scene(_to_uint8(canvas), np.where(inner == outer, mask, np.uint8(IGNORED)), things)


def _to_uint8(canvas: np.ndarray) -> np.ndarray:
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8)


def _cells(rng: np.random.Generator, count: int) -> list[Box]:
    if count == 1:
        return [(0, 0, SCENE, SCENE)]
    corners = [(CELL * (i % 2), CELL * (i // 2)) for i in rng.permutation(4)[:count].tolist()]
    return [(x, y, x + CELL, y + CELL) for x, y in corners]


def _background(rng: np.random.Generator) -> np.ndarray:
    """Noise of mostly low frequencies around a random color: SCENE x SCENE x 3 float32, about 0..1."""
    canvas = np.full((SCENE, SCENE, 3), rng.uniform(0.3, 0.7) + rng.uniform(-0.12, 0.12, 3), dtype=np.float32)
    for grid, strength in ((2, 0.07), (5, 0.04), (16, 0.03), (64, 0.02)):
        coarse = rng.normal(size=(3, grid, grid)).astype(np.float32)
        channels = [Image.fromarray(channel).resize((SCENE, SCENE), Image.Resampling.BICUBIC) for channel in coarse]
        canvas += strength * np.stack([np.asarray(channel) for channel in channels], axis=2)
    return canvas


def _clutter(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Lay translucent lines and blobs over the canvas."""
    image = Image.fromarray(_to_uint8(canvas)).resize((2 * SCENE, 2 * SCENE))
    draw = ImageDraw.Draw(image, 'RGBA')
    for _ in range(rng.integers(8, 25)):
        x, y = rng.uniform(0, 2 * SCENE, 2)
        width, height = np.exp(rng.uniform(np.log(8), np.log(160), 2))
        color = (*rng.integers(30, 226, 3).tolist(), int(rng.integers(40, 130)))
        if rng.random() < 0.5:
            draw.ellipse((x, y, x + width, y + height), fill=color)
        else:
            angle = rng.uniform(0, np.pi)
            end = (x + 2 * width * np.cos(angle), y + 2 * width * np.sin(angle))
            draw.line((x, y, *end), fill=color, width=int(rng.integers(2, 8)))
    return np.asarray(image.reduce(2), dtype=np.float32) / 255


def _paint(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, label: int, cell: Box) -> Thing:
    """Draw an object in a random pose and colors around its class's hue onto canvas and mask."""
    outline, texture, hue = CLASSES[CLASS_NAMES[label - 1]]
    angle = rng.uniform(-MAX_TURN, MAX_TURN)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    polygon, scale, center = _place(rng, outline @ turn, cell)
    left, top = np.floor(polygon.min(axis=0)).astype(int)
    right, bottom = np.ceil(polygon.max(axis=0)).astype(int)
    window = np.s_[top:bottom, left:right]
    coverage = _coverage(polygon - (left, top), right - left, bottom - top)
    xs, ys = (_supersampled(*ends) for ends in ((left, right), (top, bottom)))
    points = (np.stack(np.meshgrid(xs, ys), axis=2) - center) @ (turn.T / scale)
    canvas[window] += coverage[..., None] * (_fill(rng, texture, hue, points.astype(np.float32)) - canvas[window])
    mask[window][coverage >= 0.5] = label
    return Thing(label, polygon, _frame(rng, polygon, cell))


def _place(rng: np.random.Generator, outline: np.ndarray, cell: Box) -> tuple[np.ndarray, float, np.ndarray]:
    """Scale an outline log-uniformly and move it into its cell: polygon, pixels per unit, position of the origin."""
    smallest, largest = CLOSE_UP_SIZES if cell[2] - cell[0] == SCENE else CELL_SIZES
    extent = np.ptp(outline, axis=0)
    scale = np.exp(rng.uniform(np.log(smallest), np.log(largest))) / extent.max()
    lowest = np.array(cell[:2]) + MARGIN
    highest = np.array(cell[2:]) - MARGIN - scale * extent
    center = rng.uniform(lowest, highest) - scale * outline.min(axis=0)
    return outline * scale + center, scale, center


def _frame(rng: np.random.Generator, polygon: np.ndarray, cell: Box) -> Box:
    """A square inside the cell around the object, which takes 1/3 to 9/10 of its side."""
    lowest, highest = polygon.min(axis=0), polygon.max(axis=0)
    expected = (highest - lowest).max() * np.exp(rng.uniform(np.log(1.1), np.log(3.0)))
    side = int(np.clip(expected, SMALLEST_FRAME, cell[2] - cell[0]))
    first = np.maximum(cell[:2], np.ceil(highest) - side)
    last = np.minimum(np.array(cell[2:]) - side, np.floor(lowest))
    left, top = rng.integers(first.astype(int), last.astype(int), endpoint=True).tolist()
    return left, top, left + side, top + side


def _coverage(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """The part of every pixel that the polygon covers: height x width float32 in 0..1."""
    image = Image.new('L', (width * SUPERSAMPLING, height * SUPERSAMPLING))
    corners = polygon * SUPERSAMPLING - 0.5  # Pillow's coordinates are those of pixel centers
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners.tolist()], fill=255)
    return np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def _supersampled(first: int, end: int) -> np.ndarray:
    """Positions of the supersampled points of a range of pixels."""
    return first + (np.arange((end - first) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING


def _fill(rng: np.random.Generator, texture: Texture, hue: float, points: np.ndarray) -> np.ndarray:
    """Color a window by a texture in a dark and a light color, lit from one side: H x W x 3 float32."""
    hue += rng.normal(0, HUE_SPREAD)
    dark = hsv_to_rgb((hue % 1, rng.uniform(0.5, 1), rng.uniform(0.2, 0.5)))
    light = hsv_to_rgb((hue % 1, rng.uniform(0.2, 0.6), rng.uniform(0.8, 1)))
    colors = np.stack([dark, light])[rng.permutation(2)].astype(np.float32)
    u, v = points[..., 0], points[..., 1]
    share = _pool(texture(u, v, rng.random()).astype(np.float32))[..., None]
    shade = _pool(points @ rng.uniform(-0.15, 0.15, 2).astype(np.float32))[..., None]
    return (colors[0] + share * (colors[1] - colors[0])) * (1 + shade)


def _pool(values: np.ndarray) -> np.ndarray:
    height, width = (side // SUPERSAMPLING for side in values.shape)
    return values.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING).mean(axis=(1, 3))
