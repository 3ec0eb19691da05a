"""The loaders alone: training pictures per second, of torchvision's usual pipeline and of ours.

Pictures are drawn JPEGs of 500 x 375 in a temporary folder, crops 224 x 224, batches of 32.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from data.image_folder import ImageFolder, RandomResizedCropFlip, decode_image
from tools.benchmark.timing import interleaved, rates
from utils.device import Compute
from utils.loader import MEAN, STD, DeviceLoader, TrainBatchSampler


def measure(workers: Sequence[int], pictures: int, images: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of workers and each pipeline, over `images` from `pictures` different pictures.

    Without workers one thread does all, so its own time tells what a core does, whoever else uses the machine.
    """
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix='input-speed-') as scratch:
        draw_pictures(Path(scratch, 'class'), pictures)
        return [row for count in workers for row in rows_of(Path(scratch), images, count, rounds)]


def rows_of(folder: Path, images: int, workers: int, rounds: int) -> list[dict[str, Any]]:
    """Images per second, without workers per second of a core's time, and that rate divided by torchvision's."""
    clock = time.perf_counter if workers else time.process_time
    ways = {name: partial(seconds_of_epoch, loader, clock) for name, loader in loaders(folder, images, workers).items()}
    seconds = interleaved(ways, rounds, warm_up=1)
    rows = [{'workers': workers, 'loader': name, **rates(images, times)} for name, times in seconds.items()]
    return [{**row, 'times_torchvision': row['median'] / rows[0]['median']} for row in rows]


def seconds_of_epoch(loader: Iterable, clock: Callable[[], float]) -> float:
    """Load one epoch."""
    start = clock()
    for _ in loader:
        pass
    return clock() - start


def loaders(folder: Path, images: int, workers: int) -> dict[str, Iterable]:
    """Batches of the folder's pictures, taken in turn until there are `images`: torchvision's first, and ours."""
    crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    usual_transform = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    theirs, ours = (
        Subset(pictures, [number % len(pictures) for number in range(images)])
        for pictures in (
            datasets.ImageFolder(str(folder), usual_transform),
            ImageFolder(folder, RandomResizedCropFlip(224), decode_image),
        )
    )
    usual = DataLoader(theirs, 32, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    loader = DeviceLoader(ours, TrainBatchSampler(images, 32, seed=0, smallest=1), Compute('cpu'), workers)
    return {'torchvision, float32': usual, 'ours, float32': loader, 'ours, uint8 as for a GPU': loader.loader}


def draw_pictures(folder: Path, count: int) -> None:
    """FOLDER/N.jpg."""
    folder.mkdir()
    for number in range(count):
        draw_photo(np.random.default_rng(number)).save(folder / f'{number}.jpg', quality=90)


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
