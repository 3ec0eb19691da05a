"""How fast nets are tested and trained here, and in what memory; how fast pictures are loaded.

    python -m tools.benchmark                                    resnext50_elastic, tested on 16 images of 224 x 224
    python -m tools.benchmark --nets dla60x dla60x_elastic --rivals --train               training steps of two nets
    python -m tools.benchmark --nets resnext50/segmenter --rivals --device cuda --amp bf16 --compile
    python -m tools.benchmark --input                            the loaders alone, by number of workers

Nets are measured beside the same net run the reference's way (contiguous, float32, norms on their own) and beside
torchvision's. The ways take turns, so that a machine that slows down for a while slows all of them; medians and ranges
are printed, the peak of memory of each in a process of its own, and the share of what one large matrix product reaches
in the same precision; torchvision's nets are compared with the first net's reference. On a GPU a turn is 20 steps or a
second. Loaders meet torchvision's usual pipeline on JPEGs of 500 x 375; without workers their rate is per second of a
core's time, else per second.

A peak is of a process of its own: on a CPU of its resident memory, less what it needed before the net was built; on a
GPU of what was allocated there. Segmenters are trained with activations kept or, as segment.py does, recomputed; where
batch norms cannot be trained on a single image, they are frozen.
"""

import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tools.benchmark import loaders, nets
from tools.benchmark.nets import NETS, RIVALS, Work, ways_of
from tools.benchmark.timing import in_words
from tools.markdown import row as line
from tools.markdown import table
from utils.cli import Parser, classifier, nonnegative_int, positive_int
from utils.device import DTYPES, Compute
from utils.errors import exit_cleanly
from utils.files import check_writable, write_files
from utils.loader import available_cores


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('--input', action='store_true', help='measure the loaders, not nets')
    parser.add_argument('--rounds', type=positive_int, default=7, metavar='N', help='measurements of each way')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the numbers too')
    add = parser.add_argument_group('nets').add_argument
    add('--nets', nargs='+', type=partial(classifier, registry=NETS), default=['resnext50_elastic'], metavar='NET',
        help=f'{", ".join(NETS)}; torchvision/NAME or timm/NAME, with _elastic behind it')  # fmt: skip
    add('--rivals', nargs='*', choices=list(RIVALS), default=['resnext50_32x4d'], metavar='NAME',
        help=f"torchvision's nets beside them: {', '.join(RIVALS)}")  # fmt: skip
    add('--train', action='store_true', help='time training steps, else tests')
    add('--amp', nargs='+', choices=list(DTYPES), default=['off', 'bf16'], help='precisions')
    add('--compile', action='store_true', help='also compiled')
    add('-b', '--batch-size', type=positive_int, default=16, metavar='N', help='images at once')
    add('--image-size', type=positive_int, default=224, metavar='PIXELS', help='side of an image')
    add('--device', choices=['auto', 'cuda', 'mps', 'cpu'], default='auto', help='where')
    add('--all-gpus', action='store_true', help='on all visible GPUs, else on one')
    add = parser.add_argument_group('--input').add_argument
    add('--workers', type=nonnegative_int, nargs='+', metavar='N', help='worker counts; default: 0 to all cores')
    add('--pictures', type=positive_int, default=48, metavar='N', help='different pictures')
    add('--images', type=positive_int, default=512, metavar='N', help='loaded per round: the pictures in turn')
    return parser


def main(args: Namespace) -> None:
    """Measure, print and note."""
    if args.json:
        check_writable(args.json)
    rows = report_input(args) if args.input else report_nets(args)
    if args.json:
        facts = {'args': vars(args), 'device': Compute(args.device).name, 'cores': available_cores()}
        noted = json.dumps({**facts, 'torch': torch.__version__, 'rows': rows}, default=str, indent=1) + '\n'
        write_files({args.json: noted.encode()})


def report_nets(args: Namespace) -> list[dict[str, Any]]:
    """Measure nets and print them as a table."""
    work = Work(args.device, args.train, args.batch_size, args.image_size, args.all_gpus)
    rows = nets.measure(ways_of(args.nets, args.rivals, args.amp, args.compile), work, args.rounds)
    done, rate = 'trained' if args.train else 'tested', 'images/s (range)'
    print(table([done, rate, 'times the reference', 'peak MiB', 'GFLOP/s', 'of a matrix product'], 'lrrrrr'))
    for row in rows:
        gflops = f'{row["flops"] / 1e9:.0f}'
        if 'median' in row:
            compared = f'{row["times_reference"]:.2f}', f'{row["peak_bytes"] / 2**20:.0f}'
            print(line([row['name'], in_words(row, 2), *compared, gflops, f'{row["of_matrix_product"]:.0%}']))
        else:
            print(f'| {row["name"]} | | | | {gflops} | |')
    return rows


def report_input(args: Namespace) -> list[dict[str, Any]]:
    """Measure loaders and print them as a table."""
    workers = args.workers or range(available_cores() + 1)
    rows = loaders.measure(workers, args.pictures, args.images, args.rounds)
    cells = [[row['workers'], row['loader'], in_words(row, 0), f'{row["times_torchvision"]:.2f}'] for row in rows]
    print(table(['workers', 'loader', 'images/s (range)', "times torchvision's"], 'rlrr', cells))
    return rows


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
