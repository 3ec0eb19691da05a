"""The loaders alone: training pictures per second, of torchvision's usual pipeline and of ours.

Pictures are drawn JPEGs of 500 x 375 in a temporary folder, crops 224 x 224, batches of 32.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from data.drawn_photos import draw_pictures, link_pictures
from utils.batches import TrainBatches
from utils.compute import Compute
from utils.data import MEAN, STD, DeviceLoader
from utils.image_folder import RandomCrop, open_folder, open_pixels
from utils.interleaved import interleaved, rates

CLASSES = 8


def measure(workers: Sequence[int], pictures: int, images: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of workers and each pipeline, over `images` links to `pictures` different pictures.

    Without workers one thread does all, so its own time tells what a core does, whoever else uses the machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory(prefix='input-speed-') as scratch:
            folder = Path(scratch, 'train')
            link_pictures(draw_pictures(Path(scratch), pictures), folder, CLASSES, -(-images // CLASSES))
            return [row for count in workers for row in rows_of(folder, count, rounds)]
    finally:
        torch.set_num_threads(threads)


def rows_of(folder: Path, workers: int, rounds: int) -> list[dict[str, Any]]:
    """Images per second, without workers per second of a core's time, and that rate divided by torchvision's."""
    ways = loaders(folder, workers)
    seconds = interleaved(ways, rounds, clock=time.perf_counter if workers else time.process_time)
    images = len(list(folder.glob('*/*')))
    rows = [{'workers': workers, 'loader': name, **rates(images, times)} for name, times in seconds.items()]
    return [{**row, 'times_torchvision': row['median'] / rows[0]['median']} for row in rows]


def loaders(folder: Path, workers: int) -> dict[str, Callable[[], int]]:
    """Functions that load one epoch and say how many images that were: torchvision's pipeline first, and ours."""
    theirs = ImageFolder(str(folder), usual_transform())
    ours = open_folder(folder, RandomCrop(224), open_pixels)
    usual = DataLoader(theirs, 32, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    loader = DeviceLoader(ours, TrainBatches(len(ours), 32, seed=0, smallest=1), Compute('cpu'), workers)
    return {
        'torchvision, float32': lambda: count_images(usual),
        'ours, float32': lambda: count_images(loader),
        'ours, uint8 as for a GPU': lambda: count_images(loader.loader),
    }


def usual_transform() -> transforms.Compose:
    """What training on ImageNet usually does with a picture."""
    crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def count_images(batches: Iterable) -> int:
    """Load all batches."""
    return sum(len(images) for images, _ in batches)
