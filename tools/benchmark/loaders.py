"""The loaders alone: training pictures per second, of torchvision's usual pipeline and of ours.

Pictures are drawn JPEGs of 500 x 375 in a temporary folder, crops 224 x 224, batches of 32.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from data.image_folder import RandomResizedCropFlip, decode_image, open_folder
from tools.benchmark.timing import interleaved, rates
from utils.device import Compute
from utils.loader import MEAN, STD, DeviceLoader, TrainBatchSampler

CLASSES = 8


def measure(workers: Sequence[int], pictures: int, images: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of workers and each pipeline, over `images` links to `pictures` different pictures.

    Without workers one thread does all, so its own time tells what a core does, whoever else uses the machine.
    """
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix='input-speed-') as scratch:
        folder = Path(scratch, 'train')
        link_pictures(draw_pictures(Path(scratch), pictures), folder, CLASSES, -(-images // CLASSES))
        return [row for count in workers for row in rows_of(folder, count, rounds)]


def rows_of(folder: Path, workers: int, rounds: int) -> list[dict[str, Any]]:
    """Images per second, without workers per second of a core's time, and that rate divided by torchvision's."""
    ways = loaders(folder, workers)
    seconds = interleaved(ways, rounds, clock=time.perf_counter if workers else time.process_time)
    images = len(list(folder.glob('*/*')))
    rows = [{'workers': workers, 'loader': name, **rates(images, times)} for name, times in seconds.items()]
    return [{**row, 'times_torchvision': row['median'] / rows[0]['median']} for row in rows]


def loaders(folder: Path, workers: int) -> dict[str, Callable[[], int]]:
    """Functions that load one epoch and say how many images that were: torchvision's pipeline first, and ours."""
    crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    usual_transform = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    theirs = ImageFolder(str(folder), usual_transform)
    ours = open_folder(folder, RandomResizedCropFlip(224), decode_image)
    usual = DataLoader(theirs, 32, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    loader = DeviceLoader(ours, TrainBatchSampler(len(ours), 32, seed=0, smallest=1), Compute('cpu'), workers)

    def count_images(batches: Iterable) -> int:
        return sum(len(images) for images, _ in batches)

    return {
        'torchvision, float32': lambda: count_images(usual),
        'ours, float32': lambda: count_images(loader),
        'ours, uint8 as for a GPU': lambda: count_images(loader.loader),
    }


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
