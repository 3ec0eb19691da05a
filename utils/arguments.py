"""Command-line arguments that scripts share, each described once."""

import argparse
import math
from pathlib import Path
from typing import NoReturn

from utils.compute import DTYPES


class Parser(argparse.ArgumentParser):
    """argparse with the default of each argument in --help and one line for an error."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=_HelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message} (--help lists the arguments)\n')


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The launch lines of the docstring as they are, defaults behind each argument."""


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a run computes, what it writes and how it goes on: the same on every script."""
    run = parser.add_argument_group('run')
    run.add_argument('--device', choices=['auto', 'cuda', 'mps', 'cpu'], default='auto')
    run.add_argument('--amp', choices=list(DTYPES), default='off', help='mixed precision')
    run.add_argument('--no-channels-last', action='store_true', help='contiguous feature maps, slower')
    run.add_argument('--compile', action='store_true', help='torch.compile the net')
    run.add_argument('--seed', type=natural, help='of initial values, order and augmentation; 0 unless given')
    run.add_argument('--output', type=Path, default=Path(), metavar='DIR', help='for checkpoints, log and curves')
    run.add_argument('--resume', type=Path, metavar='PATH', help='checkpoint to go on from, evaluate or transfer')
    run.add_argument('--auto-resume', action='store_true', help="go on from the run's own last checkpoint, if any")
    run.add_argument('--save-steps', type=natural, default=0, metavar='N', help='save every N updates too; 0: never')


def add_recipe_arguments(parser: argparse.ArgumentParser, architectures: list[str]) -> None:
    """Net and optimisation, under the names and with the ImageNet defaults of the reference."""
    recipe = parser.add_argument_group('recipe')
    recipe.add_argument('-a', '--arch', choices=architectures, default='resnext50_elastic', metavar='ARCH',
                        help=', '.join(architectures))  # fmt: skip
    recipe.add_argument('--epochs', type=natural, default=120)
    recipe.add_argument('--start-epoch', type=natural, default=0, help="a resumed checkpoint's own wins")
    recipe.add_argument('-b', '--batch-size', type=positive, default=256, help='samples per update')
    recipe.add_argument('-g', '--num-gpus', type=positive, default=8, help='as if on so many GPUs, on any number')
    recipe.add_argument('--lr', '--learning-rate', type=nonnegative, default=0.1, help='initial learning rate')
    recipe.add_argument('--momentum', type=nonnegative, default=0.9)
    recipe.add_argument('--weight-decay', '--wd', type=nonnegative, default=1e-4)
    recipe.add_argument('--decay-epochs', type=positive, default=30, help='lr is divided by 10 so often')


def add_loop_arguments(parser: argparse.ArgumentParser) -> None:
    """Input and reporting of the classifying scripts."""
    loop = parser.add_argument_group('input and reporting')
    loop.add_argument('--image-size', type=positive, default=224, metavar='PIXELS', help='side of the crop')
    loop.add_argument('-j', '--workers', type=natural, default=16, help="loading; at most the machine's cores")
    loop.add_argument('-p', '--print-freq', type=positive, default=117, help='iterations between two lines')
    loop.add_argument('-e', '--evaluate', action='store_true', help='evaluate on the validation set and exit')


def natural(text: str) -> int:
    """A whole number from 0 on."""
    return _at_least(0, int(text))


def positive(text: str) -> int:
    """A whole number from 1 on."""
    return _at_least(1, int(text))


def nonnegative(text: str) -> float:
    """A finite number from 0 on."""
    return _at_least(0, float(text))


def _at_least(least, value):
    if not (math.isfinite(value) and value >= least):
        raise ValueError(value)
    return value
