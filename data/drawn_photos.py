"""Pictures that decode and resize as photos do, and folders of any size made of hard links to a few of them."""

import os
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image


def draw_pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs in FOLDER/pictures."""
    paths = [folder / 'pictures' / f'{number}.jpg' for number in range(count)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        draw_photo(np.random.default_rng(number)).save(path, quality=90)
    return paths


def draw_photo(rng: np.random.Generator) -> Image.Image:
    """500 x 375 pixels with detail at every scale, edges and grain: some 64 kB as a JPEG of quality 90."""
    pixels = np.zeros((375, 500, 3))
    for side in 4, 8, 16, 32, 64, 128, 256:
        noise = rng.normal(size=(3, side, side)).astype(np.float32)
        layers = [np.asarray(Image.fromarray(layer).resize((500, 375), Image.Resampling.BICUBIC)) for layer in noise]
        pixels += (np.stack(layers, -1) + 2 * np.mean(layers, 0)[..., None]) / side**0.9
    pixels = 128 + pixels * 70 / pixels.std()
    rows, columns = np.mgrid[:375, :500]
    for _ in range(12):
        top, left, radius = rng.uniform(0, 375), rng.uniform(0, 500), rng.uniform(20, 100)
        pixels[np.hypot(rows - top, columns - left) < radius] += rng.normal(size=3) * 40
    pixels += rng.normal(size=(375, 500, 1)) * rng.uniform(2, 12)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def link_pictures(pictures: list[Path], folder: Path, classes: int, per_class: int) -> None:
    """FOLDER/CLASS/NAME.JPEG, hard links to the pictures in turn, named as ImageNet's are."""
    sources = cycle(map(str, pictures))
    for label in range(classes):
        place = folder / f'n{label:08}'
        place.mkdir(parents=True)
        for image in range(per_class):
            os.link(next(sources), f'{place}/{place.name}_{image}.JPEG')
