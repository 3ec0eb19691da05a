"""How many pictures per second the loaders deliver, without a net, and how long a run takes to its first batch.

    python -m tools.input_speed                                  torchvision's usual pipeline and ours, by workers
    python -m tools.input_speed --startup DIR                    seconds from launch to the first batch of DIR/train
    python -m tools.input_speed --startup                        ... of a set of ImageNet's size, made of hard links
    python -m tools.input_speed --json speed.json                the numbers of either, as a file

Pictures are 500 x 375 JPEGs, drawn in a temporary folder; crops are 224 x 224, batches of 32. The ways take turns, so
that a machine that slows down for a while slows all of them; medians and ranges over the rounds are printed. Without
workers they are per second of one core's time, with workers per second.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import classify
from utils.arguments import Parser, natural, positive
from utils.batches import TrainBatches
from utils.compute import Compute
from utils.data import MEAN, STD, DeviceLoader, available_cores
from utils.errors import UserError, exit_cleanly
from utils.image_folder import RandomCrop, open_folder, open_pixels, open_train_and_val

ROOT = Path(__file__).parent.parent
BASELINE = 'torchvision, float32'
STAGES = 'imports', 'index', 'first batch'


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add('--startup', nargs='?', const='', metavar='DIR', help='time to the first batch of 8, without DIR of a made set')
    add('--rounds', type=positive, default=7, metavar='N', help='measurements of each way')
    add('--json', type=Path, metavar='FILE', help='write the numbers')
    add('--workers', type=natural, nargs='+', metavar='N', help='worker counts; default: 0 to the number of cores')
    add('--pictures', type=positive, default=48, metavar='N', help='different pictures')
    add('--images', type=positive, default=512, metavar='N', help='loaded per round: links to the pictures')
    add('--classes', type=positive, default=1000, metavar='N', help='of the set made for --startup')
    add('--per-class', type=positive, default=1281, metavar='N', help='its training images per class')
    add('--first-batch', metavar='DIR', help='what --startup launches: load a batch, tell when')
    return parser


def main(args: Namespace) -> None:
    """Measure, print and note."""
    if args.first_batch:
        print(json.dumps(first_batch(args.first_batch)), flush=True)
        return
    results = measure_loaders(args) if args.startup is None else measure_startup(args)
    if args.json:
        try:
            args.json.write_text(json.dumps(results, indent=1) + '\n')
        except OSError as error:
            raise UserError(f'cannot write {args.json}: {error.strerror}') from error


def measure_loaders(args: Namespace) -> dict[str, Any]:
    """Images per second of each way with each number of workers, printed as a table."""
    with TemporaryDirectory(prefix='input-speed-') as scratch:
        folder = Path(scratch, 'train')
        link_pictures(draw_pictures(Path(scratch), args.pictures), folder, 8, -(-args.images // 8))
        workers = args.workers or range(available_cores() + 1)
        # Without workers one thread does all, so its own time tells what a core does, whoever else uses the machine.
        clocks = {count: time.perf_counter if count else time.process_time for count in workers}
        rates = {count: interleaved(loaders(folder, count), args.rounds, clocks[count]) for count in workers}
    print(f'{"workers":>7}  {"loader":26} {"images/s":>8}  {"(range)":16} {"ratio":>5}')
    for count, ways in rates.items():
        first = statistics.median(ways[BASELINE])
        for name, values in ways.items():
            median, spread = statistics.median(values), f'({min(values):.0f} to {max(values):.0f})'
            print(f'{count:7}  {name:26} {median:8.0f}  {spread:16} {median / first:5.2f}')
    return {'images': args.images, 'cores': available_cores(), 'images_per_second': rates}


def loaders(folder: Path, workers: int) -> dict[str, Callable[[], int]]:
    """Functions that load one epoch and say how many images that were: of torchvision's pipeline, and of ours."""
    torch.set_num_threads(1)  # so that without workers all is done by one core
    theirs = ImageFolder(str(folder), usual_transform())
    ours = open_folder(folder, RandomCrop(224), open_pixels)
    usual = DataLoader(theirs, 32, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    loader = DeviceLoader(ours, TrainBatches(len(ours), 32, seed=0, smallest=1), Compute('cpu'), workers)
    return {
        BASELINE: lambda: count_images(usual),
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


def interleaved(
    ways: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Images per second of each way in each round, after one round that does not count: it starts the workers."""
    rates = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            start = clock()
            images = run()
            if number:
                rates[name].append(images / (clock() - start))
    return rates


def measure_startup(args: Namespace) -> dict[str, Any]:
    """Seconds from launch to the first batch, of the folder that is named or of one that is made."""
    if args.startup:
        return startup(args.startup, args.rounds, os.environ)
    with TemporaryDirectory(prefix='input-speed-') as scratch:
        pictures = draw_pictures(Path(scratch), args.pictures)
        for part, count in ('train', args.per_class), ('val', min(args.per_class, 50)):
            link_pictures(pictures, Path(scratch, part), args.classes, count)
        print(f'{args.classes * args.per_class:,} training images in {args.classes:,} classes', flush=True)
        # Nothing is left in the user's cache; Matplotlib's fonts are known from there.
        cache = {'XDG_CACHE_HOME': scratch, 'MPLCONFIGDIR': matplotlib.get_cachedir()}
        return startup(scratch, args.rounds, os.environ | cache)


def startup(folder: str, rounds: int, environment: dict[str, str]) -> dict[str, Any]:
    """Launch a process that may have to make the index, then some that find it, and print their times."""
    times = []
    for number in range(rounds + 1):
        times.append(launch(folder, environment))
        listed = ', '.join(f'{name} {times[-1][name]:.2f}' for name in STAGES)
        print(f'{"indexed" if number else "first":8} {times[-1]["total"]:6.2f} s: {listed}', flush=True)
    totals = [each['total'] for each in times[1:]]
    print(f'{"median":8} {statistics.median(totals):6.2f} s ({min(totals):.2f} to {max(totals):.2f})')
    return {'first': times[0], 'indexed': times[1:]}


def launch(folder: str, environment: dict[str, str]) -> dict[str, float]:
    """The seconds a new process takes for each stage, by the clock that all processes share, and for all of them."""
    command = [sys.executable, '-m', 'tools.input_speed', '--first-batch', os.path.abspath(folder)]
    start = time.monotonic()
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(ended.stderr.strip().removeprefix('error: '))
    moments = [start, *json.loads(ended.stdout)]
    seconds = [after - before for before, after in zip(moments[:-1], moments[1:], strict=True)]
    return dict(zip(STAGES, seconds, strict=True), total=sum(seconds))


def first_batch(folder: str) -> list[float]:
    """Load as classify.py does; the moments when everything was imported, the index ready, and a batch of 8 there."""
    args = classify.make_parser().parse_args([folder])
    moments = [time.monotonic()]
    train, _ = open_train_and_val(args.data, args.image_size)
    moments.append(time.monotonic())
    loader = DeviceLoader(train, TrainBatches(len(train), 8, seed=0), Compute(args.device), args.workers)
    images, _ = next(iter(loader))
    images.sum().item()  # waits for a GPU
    return [*moments, time.monotonic()]


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


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
