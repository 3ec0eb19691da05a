"""Images per second of evaluation on this machine: contiguous as the reference ran it, channels-last, and with bf16.

    python -m tools.benchmark                                    resnext50_elastic, batches of 16 at 224 x 224
    python -m tools.benchmark -a dla60x --batch-size 8 --rounds 15

The ways take turns, so that a machine that slows down for a while slows all of them; medians and ranges are printed.
"""

import statistics
import time
from argparse import Namespace
from collections.abc import Callable

import torch

import models
from utils.arguments import Parser, positive
from utils.compute import Compute
from utils.errors import exit_cleanly


def make_parser() -> Parser:
    parser = Parser(__doc__)
    names = list(models.classifiers)
    parser.add_argument('-a', '--arch', choices=names, default='resnext50_elastic', metavar='ARCH', help='the net')
    parser.add_argument('-b', '--batch-size', type=positive, default=16, metavar='N', help='images at once')
    parser.add_argument('--image-size', type=positive, default=224, metavar='PIXELS', help='side of an image')
    parser.add_argument('--rounds', type=positive, default=9, metavar='N', help='measurements of each way')
    parser.add_argument('--device', choices=['auto', 'cuda', 'mps', 'cpu'], default='auto', help='where')
    return parser


def main(args: Namespace) -> None:
    """Measure and print."""
    ways = {
        'contiguous, float32': Compute(args.device, channels_last=False),
        'channels-last, float32': Compute(args.device),
        'channels-last, bf16': Compute(args.device, 'bf16'),
    }
    runs = {name: evaluation(args, compute) for name, compute in ways.items()}
    speeds = interleaved(runs, args.rounds, args.batch_size)
    first = statistics.median(next(iter(speeds.values())))
    for name, values in speeds.items():
        median = statistics.median(values)
        spread = f'{min(values):.2f} to {max(values):.2f}'
        print(f'{name:24} {median:8.2f} images/s ({spread}) {median / first:6.2f} x')


def evaluation(args: Namespace, compute: Compute) -> Callable[[], None]:
    """A function that evaluates the net on one batch and waits for the device."""
    torch.manual_seed(0)
    runner = compute.runner(compute.place(models.build_classifier(args.arch)).eval(), train=False)
    images = compute.images(torch.randn(args.batch_size, 3, args.image_size, args.image_size))

    def run() -> None:
        with torch.inference_mode(), compute.autocast():
            runner(images)[0, 0].item()

    return run


def interleaved(runs: dict[str, Callable[[], None]], rounds: int, batch_size: int) -> dict[str, list[float]]:
    """Images per second of each run in each round, after one round that does not count."""
    speeds = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                speeds[name].append(batch_size / (time.perf_counter() - start))
    return speeds


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
