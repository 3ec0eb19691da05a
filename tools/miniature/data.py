"""Pictures of one object each, whose size in the picture is known and varies four- to six-fold.

All are SIDE x SIDE pixels. A picture is drawn from (seed, part, number) alone, so a set can be drawn in any order and
a longer one begins with a shorter one. Sizes are cut into thirds of their logarithmic range.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data.fashion_mnist import CLASSES, read_part
from data.fashion_mnist import PARTS as FASHION_FILES
from data.fashion_mnist import SIDE as PHOTO
from data.sample import PARTS, VERSION, pool_map
from data.scenes import CELL, CELL_SIZES, CLASS_NAMES, render_scene
from utils.files import written_whole

SIDE = 48
THIRDS = 'small', 'medium', 'large'
SHAPE_SIZES = CELL_SIZES[0] * SIDE / CELL, CELL_SIZES[1] * SIDE / CELL  # longer side of the object, in pixels
FACTORS = 0.4, 1.6  # of a photo's side
PHOTO_SIZES = FACTORS[0] * PHOTO, FACTORS[1] * PHOTO
IN_A_SCENE = 4  # objects, each in a cell of its own
BACKGROUND = 40, 20  # grey of the canvas under a photo: mean and standard deviation of its pixels


@dataclass(frozen=True)
class ScaledObjects(Dataset):
    """Pictures (N x channels x SIDE x SIDE uint8, 3 channels or 1 grey), labels (N), sizes (N, in pixels)."""

    pictures: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    reach: tuple[float, float]  # smallest and largest size there can be
    classes: list[str]
    transform: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """uint8 3 x SIDE x SIDE, and its target: label and third of the sizes, 2."""
        picture = torch.from_numpy(self.pictures[index]).expand(3, -1, -1)
        target = torch.tensor([int(self.labels[index]), third_of(self.sizes[index], self.reach)])
        return (self.transform(picture) if self.transform else picture), target


def third_of(size: float, reach: tuple[float, float]) -> int:
    """0, 1 or 2: the third of the range, on a logarithmic scale, that a size lies in."""
    return int(np.searchsorted(np.geomspace(*reach, len(THIRDS) + 1)[1:-1], size, side='right'))


def shapes(cache: Path, seed: int, part: str, count: int, workers: int) -> ScaledObjects:
    """The sample generator's objects as large as they are in their scenes: `count`, or up to three more.

    Each lies in its cell of a scene, which is shrunk to SIDE. They are drawn once, into a file in `cache`.
    """
    scenes = -(-count // IN_A_SCENE)
    path = cache / f'shapes_{part}_{scenes}x{IN_A_SCENE}_seed{seed}_v{VERSION}_{SIDE}.npz'
    if not path.exists():
        with pool_map(workers) as map_:
            cells = map_(partial(draw_cells, seed, part), range(scenes))
            drawn = list(tqdm(cells, part, scenes, disable=None, leave=False))
        arrays = dict(zip(('pictures', 'labels', 'sizes'), map(np.concatenate, zip(*drawn, strict=True)), strict=True))
        with written_whole(path) as (file,), open(file, 'wb') as opened:
            np.savez(opened, **arrays)
    with np.load(path) as arrays:
        return ScaledObjects(**arrays, reach=SHAPE_SIZES, classes=list(CLASS_NAMES))


def draw_cells(seed: int, part: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, labels and sizes of a scene's four objects; scenes of even and odd number share the eight classes."""
    rng = np.random.default_rng((seed, PARTS.index(part), number))
    groups = len(CLASS_NAMES) // IN_A_SCENE
    first = number % groups * IN_A_SCENE
    scene = render_scene(rng, tuple(range(first + 1, first + IN_A_SCENE + 1)))
    corners = [(thing.polygon.min(axis=0) // CELL * CELL).astype(int) for thing in scene.things]
    cells = [scene.picture[y : y + CELL, x : x + CELL] for x, y in corners]
    sizes = [np.ptp(thing.polygon, axis=0).max() * SIDE / CELL for thing in scene.things]
    shrunk = [Image.fromarray(cell).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for cell in cells]
    return np.stack(shrunk).transpose(0, 3, 1, 2), np.arange(IN_A_SCENE) + first, np.array(sizes)


def jittered_photos(source: Path, seed: int, part: str, count: int) -> ScaledObjects:
    """The first `count` photos of Fashion-MNIST, each resized by a factor of its own on a canvas of noise.

    `source` is the folder of the four files; UserError if they are missing or damaged.
    """
    photos, labels = (values[:count] for values in read_part(source, FASHION_FILES[part]))
    drawn = [jitter(seed, part, number, photo) for number, photo in enumerate(photos)]
    pictures, sizes = zip(*drawn, strict=True)
    return ScaledObjects(np.stack(pictures)[:, None], labels, np.array(sizes), PHOTO_SIZES, list(CLASSES))


def jitter(seed: int, part: str, number: int, photo: np.ndarray) -> tuple[np.ndarray, float]:
    """A photo (28 x 28 uint8), resized log-uniformly, at a random place: SIDE x SIDE uint8, and its new side."""
    rng = np.random.default_rng((seed, PARTS.index(part), number))
    size = PHOTO * float(np.exp(rng.uniform(*np.log(FACTORS))))
    side = round(size)
    left, top = rng.integers(0, SIDE - side, 2, endpoint=True)
    canvas = rng.normal(*BACKGROUND, (SIDE, SIDE))
    resized = Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR)  # averages where it shrinks
    canvas[top : top + side, left : left + side] += np.asarray(resized)
    return canvas.clip(0, 255).round().astype(np.uint8), size
