"""Where the time of a test goes: the stages of nets, each with its operations and the rate it reaches.

    python -m tools.stage_speed dla102x dla102x_elastic                 the second net's stages beside the first one's
    python -m tools.stage_speed resnext50_elastic --depth 2 --amp bf16  block by block

Nets are tested on the CPU as our scripts test them (models/fused.py) and take turns; times are medians. A stage is a
module of the net (with --depth 2: of one of its modules) that multiplies; what runs between them is only in the whole.
The last line separates what a net computes from how well it is computed: the rate that it would reach if each of its
stages ran at the rate of the first net's stage of that name.
"""

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

import models
from models.cost import macs_of_modules
from models.fused import fused
from tools.benchmark.timing import interleaved
from utils.cli import Parser, positive_int
from utils.device import Compute, keep_freed_memory
from utils.errors import exit_cleanly

WARM_UP = 2  # rounds that do not count


def make_parser() -> Parser:
    parser = Parser(__doc__)
    nets = list(models.classifiers)
    parser.add_argument('nets', nargs='+', choices=nets, metavar='ARCH', help=', '.join(nets))
    parser.add_argument('--depth', type=positive_int, default=1, metavar='N', help='of stages in the tree of modules')
    parser.add_argument('--amp', choices=['off', 'bf16'], default='off', help='precision')
    parser.add_argument('-b', '--batch-size', type=positive_int, default=16, metavar='N', help='images at once')
    parser.add_argument('--image-size', type=positive_int, default=224, metavar='PIXELS', help='side of an image')
    parser.add_argument('--rounds', type=positive_int, default=7, metavar='N', help='measurements of each net')
    return parser


@dataclass(frozen=True)
class Stage:
    """What a stage computes for a batch, and how long it takes."""

    operations: float
    seconds: float

    @property
    def rate(self) -> float:
        """Floating-point operations per second."""
        return self.operations / self.seconds


Stages = dict[str, Stage]  # of a net, by name; the empty name is the whole


def main(args: Namespace) -> None:
    """Print a table of all nets, and for each but the first a line that compares it."""
    compute = Compute('cpu', args.amp)
    keep_freed_memory(compute.device)
    nets = {name: compute.place_for_test(fused(models.build_classifier(name))) for name in dict.fromkeys(args.nets)}
    measured = measure(nets, args, compute)
    first, base = next(iter(measured.items()))
    print(f"| net | stage | GFLOP | ms | GFLOP/s | of {first}'s |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for net, stages in measured.items():
        print('\n'.join(line(net, name, stage, base) for name, stage in stages.items()))
    for net, stages in list(measured.items())[1:]:
        reached, possible = stages[''].rate / base[''].rate, rate_at(stages, base) / base[''].rate
        print(f"{net}: {reached:.2f} of {first}'s GFLOP/s; with each stage at the rate of {first}'s, {possible:.2f}")


def measure(nets: dict[str, nn.Module], args: Namespace, compute: Compute) -> dict[str, Stages]:
    """The stages of all nets."""
    images = compute.images(torch.randn(args.batch_size, 3, args.image_size, args.image_size)).to(compute.dtype)
    work = {name: stage_operations(net, args) for name, net in nets.items()}
    calls = {name: [] for name in nets}

    def test(name: str) -> None:
        with torch.inference_mode(), timed(nets[name], list(work[name])) as seconds:
            nets[name](images)
        calls[name].append(seconds)

    interleaved({name: partial(test, name) for name in nets}, args.rounds, WARM_UP)
    return {name: medians(work[name], calls[name][WARM_UP:]) for name in nets}


def stage_operations(net: nn.Module, args: Namespace) -> dict[str, int]:
    """Two per multiply-accumulate, for a batch, of each stage and of the whole net."""
    macs = macs_of_modules(net, args.image_size)
    names = [name for name, _ in net.named_modules() if name in macs and name.count('.') == args.depth - 1 and name]
    return {name: 2 * args.batch_size * macs[name] for name in [*names, '']}


@contextmanager
def timed(
    net: nn.Module, names: Sequence[str], clock: Callable[[], float] = time.perf_counter
) -> Iterator[dict[str, float]]:
    """Notes the seconds of these modules by their names while open; of one that is called more than once, their sum."""
    seconds, handles = dict.fromkeys(names, 0.0), []

    def count(name: str, sign: int, *_) -> None:
        seconds[name] += sign * clock()

    for name in names:
        module = net.get_submodule(name)
        handles.append(module.register_forward_pre_hook(partial(count, name, -1)))
        handles.append(module.register_forward_hook(partial(count, name, 1)))
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def medians(operations: dict[str, int], calls: list[dict[str, float]]) -> Stages:
    """The stages, from their seconds in all rounds."""
    return {name: Stage(work, statistics.median(call[name] for call in calls)) for name, work in operations.items()}


def rate_at(stages: Stages, base: Stages) -> float:
    """Operations per second of a net whose stages run at the rates of the base's, where that has one of the name."""
    shared = [name for name in stages if name and name in base]
    seconds = sum(stages[name].operations / base[name].rate - stages[name].seconds for name in shared)
    return stages[''].operations / (stages[''].seconds + seconds)


def line(net: str, name: str, stage: Stage, base: Stages) -> str:
    """A line of the table."""
    compared = f'{stage.rate / base[name].rate:.2f}' if name in base else ''
    cells = f'{stage.operations / 1e9:.1f} | {1e3 * stage.seconds:.0f} | {stage.rate / 1e9:.0f}'
    return f'| {net} | {name or "all"} | {cells} | {compared} |'


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
