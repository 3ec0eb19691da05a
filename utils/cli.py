"""Command-line arguments that scripts share, each described once."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

import models
from utils.checkpoint import read_weights
from utils.device import DTYPES
from utils.distributed import is_main_process
from utils.errors import UserError, reading

LARGEST = 2**31 - 1  # of whole numbers: products of two and an image's values are counted in 64 bits
MOST_PIXELS = 2**14  # of a side
MOST = 1e30  # of real numbers, which float32 holds


class Parser(argparse.ArgumentParser):
    """argparse with the default of each argument in --help and one line for an error.

    Flags are declared with dashes and may be given with underscores, as in the reference.
    """

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=_HelpFormatter)
        if self.prog == '__main__.py':  # of a package, which Python 3.14 tells by itself
            self.prog = f'python -m tools.{Path(sys.argv[0]).parent.name}'

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, which parse_args calls, with --a_flag, --a_flag=a_value and --a_fl read as --a-flag ..."""
        args = list(sys.argv[1:] if args is None else args)
        end = args.index('--') if '--' in args else len(args)
        flags = [re.sub(r'^--[\w-]+(?==|\Z)', lambda flag: flag[0].replace('_', '-'), arg) for arg in args[:end]]
        return super().parse_known_args(flags + args[end:], namespace)

    def error(self, message: str) -> NoReturn:
        """End with the message on one line, and exit status 2."""
        self.exit(2, f'{self.prog}: error: {message} (--help lists the arguments)\n')


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The launch lines of the docstring as they are, and behind each argument its default, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.nargs == 0 else super()._get_help_string(action)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a run computes, what it writes, how it goes on and how its processes meet: the same on every script."""
    add = parser.add_argument_group('run').add_argument
    add_device_argument(add)
    add('--amp', choices=list(DTYPES), default='off', help='precision of products; tf32, fp16: GPUs only')
    add('--no-channels-last', action='store_true', help='contiguous feature maps, slower')
    add('--compile', action='store_true', help='torch.compile the net')
    add('--seed', type=random_seed, metavar='N', help='of initial values, order and augmentation; 0 unless given')
    add('--output', type=Path, default=Path(), metavar='DIR', help='for checkpoints, log and curves')
    add('--resume', type=optional_path, metavar='PATH', help='checkpoint to go on from, evaluate or transfer')
    add('--auto-resume', action='store_true', help="go on from the run's own last checkpoint, if there is one")
    add('--save-steps', type=nonnegative_int, default=0, metavar='N', help='save every N updates; 0: at epochs only')
    # The first two are docker_classify.py's, the last one the classifying scripts'.
    parser.set_defaults(static_loss_scale=None, batch_per_gpu=False, pretrained=None)
    add_distributed_arguments(parser)


def add_distributed_arguments(parser: argparse.ArgumentParser) -> None:
    """How the processes of a job meet, one per device; a launcher's numbers win over --world-size and --rank."""
    add = parser.add_argument_group('one process per GPU').add_argument
    add('--world-size', type=positive_int, default=1, metavar='N', help='number of processes')
    add('--rank', type=nonnegative_int, metavar='N', help='number of this process, from 0')
    add('--dist-url', metavar='URL', help='where processes meet; default: where the launcher says')
    add('--dist-backend', choices=['nccl', 'gloo'], help='default: nccl on GPUs, gloo on CPUs')
    add('--dist-timeout', type=positive_int, default=600, metavar='SECONDS',
        help='after which a silent process is lost')  # fmt: skip
    add('--sync-bn', action='store_true', help='normalize over the batches of all processes; GPUs only')


def add_classifying_arguments(parser: argparse.ArgumentParser, batch: str = 'samples per update') -> None:
    """What the classifying scripts share, under the names of the reference.

    Defaults of the recipe are the script's to set; `batch` is what --help says of --batch-size.
    """
    add = parser.add_argument_group('recipe').add_argument
    nets = ', '.join(models.classifiers)
    add('-a', '--arch', type=classifier, default='resnext50_elastic', metavar='ARCH',
        help=f'{nets}; torchvision/NAME or timm/NAME, with _elastic behind it for its Elastic form')  # fmt: skip
    add('--pretrained', type=Path, metavar='FILE', help="the library's weights of torchvision/NAME or timm/NAME")
    add('--epochs', type=nonnegative_int, metavar='N', help='epochs in all')
    add('--start-epoch', type=nonnegative_int, default=0, metavar='N',
        help="number of the first epoch; a resumed file's own wins")  # fmt: skip
    add('-b', '--batch-size', type=positive_int, metavar='N', help=batch)
    add('-g', '--num-gpus', type=positive_int, metavar='N',
        help='GPUs that the batch is cut for; on fewer, their parts are computed one after the other')  # fmt: skip
    # --l: before Python 3.12 an abbreviation of two names of one flag counts as ambiguous.
    add('--lr', '--learning-rate', '--l', type=nonnegative_float, metavar='X', help='initial learning rate')
    add('--momentum', type=nonnegative_float, metavar='X', help="SGD's momentum")
    add('--weight-decay', '--wd', type=nonnegative_float, metavar='X', help='weight decay of all parameters')
    add = parser.add_argument_group('input, testing and reporting').add_argument
    add('--image-size', type=at_least_32, default=224, metavar='PIXELS', help='side of the crop')
    add('-j', '--workers', type=nonnegative_int, default=16, metavar='N', help="loading; at most the machine's cores")
    add('-p', '--print-freq', type=positive_int, default=117, metavar='N', help='iterations between two lines')
    add('-e', '--evaluate', action='store_true', help='evaluate on the validation set and exit')
    add('--average-bn', action='store_true', help='average running statistics over processes before each test')


def add_device_argument(add: Callable[..., argparse.Action]) -> None:
    """Where nets run; `add` is the add_argument of a parser or of a group of it."""
    add('--device', choices=['auto', 'cuda', 'mps', 'cpu'], default='auto', help='auto: the first of them there is')


def classifier(name: str, registry: models.Classifiers = models.classifiers) -> str:
    """The name of a net of the registry, or of a library's classifier."""
    try:
        registry[name]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def classifier_of(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """Build the net of --arch with fresh weights, or, where --pretrained names them, with those of its library."""
    name, path, given = args.arch, args.pretrained, {}
    if path:
        if '/' not in name:
            raise UserError(f'--pretrained is for nets of libraries: for {name} use tools.import_weights, and --resume')
        if args.resume:
            raise UserError('--pretrained and --resume both name weights: give one of them')
        given['weights'] = read_weights(path)
    try:
        model = models.build_classifier(name, num_classes, **given)
    except ValueError as error:
        raise UserError(f'--arch {name}' + f' from {path}' * bool(path) + f': {error}') from None
    check_image_size(f'--arch {name}', model, args.image_size)
    if path and model.fresh:
        if args.evaluate:
            raise UserError(f'{path}: its {", ".join(model.fresh)} is not of {num_classes} classes')
        if is_main_process():
            print(f'=> left out of {path}, as initialised: {", ".join(model.fresh)}', flush=True)
    return model


def check_image_size(name: str, model: nn.Module, side: int) -> None:
    """UserError if a library's net does not take square pictures of so many pixels; those of the paper take any."""
    if '/' in name:
        was_training = model.training
        with torch.inference_mode(), reading(f'{name} takes no pictures of {side} pixels'):
            model.eval()(torch.zeros(1, 3, side, side))
        model.train(was_training)


def optional_path(text: str) -> Path | None:
    """A path; of nothing, which was the default in the reference, None."""
    return Path(text) if text else None


def file_type(suffix: str) -> Callable[[str], Path]:
    """A type for argparse: the path of a file whose name ends so."""

    def parse(text: str) -> Path:
        if not text.lower().endswith(suffix):
            raise argparse.ArgumentTypeError(f'{text!r} does not end in {suffix}')
        return Path(text)

    return parse


def number_type(name: str, kind: Callable[[str], Any], least: float, most: float) -> Callable[[str], Any]:
    """A type for argparse: int or float within bounds. Errors show its name: "invalid positive_int value: '0'"."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    parse.__name__ = name
    return parse


nonnegative_int = number_type('nonnegative_int', int, 0, LARGEST)
positive_int = number_type('positive_int', int, 1, LARGEST)
random_seed = number_type('random_seed', int, 0, 2**63 - 1)
at_least_32 = number_type('at_least_32', int, 32, MOST_PIXELS)  # the factor by which classifiers reduce a side
at_least_33 = number_type('at_least_33', int, 33, MOST_PIXELS)  # of less, DLA-Up would leave a value for batch norm
nonnegative_float = number_type('nonnegative_float', float, 0, MOST)
positive_float = number_type('positive_float', float, 1 / MOST, MOST)
multiplier = number_type('multiplier', float, 0, 1e8)  # of another of our numbers: float32 holds the product
scale = number_type('scale', float, 1 / MOST, 64)


def scales(text: str) -> list[float]:
    """Factors of a picture's sides, between commas."""
    return [scale(part) for part in text.split(',')]
