"""What holds on the GPU at hand, in some ten minutes and without data: a table of checks, and two nets' speed.

    python -m tools.check_gpu                                    all checks; writes runs/gpu.md and runs/gpu.json
    python -m tools.check_gpu --only golden waits                those whose names hold one of these words, no speed
    python -m tools.check_gpu --out h100.md                      ... and h100.json

Each line names what was checked, what was measured and the bound. The exit status is 1 if a check falls short. One that
needs what is not there, as a second GPU, is skipped, with the reason.
"""

import json
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tools.benchmark.timing import in_words
from tools.check_gpu import cost, numbers, processes, waits, ways
from tools.check_gpu.nets import compute_of
from tools.check_gpu.result import Result
from utils.cli import Parser, file_type
from utils.errors import UserError, exit_cleanly
from utils.files import check_writable, write_files

Check = Callable[[torch.device], Result]
Row = dict[str, Any]
SHORT = 'falls short'

# First what no CPU can tell, last what takes longest.
CHECKS: dict[str, Check] = {
    **{f'no waits in training, {task}': partial(waits.training_does_not_wait, task=task) for task in waits.TASKS},
    'no waits in training, bf16': partial(waits.training_does_not_wait, task='voc', amp='bf16'),
    'no waits in training, fp16': partial(waits.training_does_not_wait, task='imagenet', amp='fp16'),
    **{f'no waits in testing, {task}': partial(waits.testing_does_not_wait, task=task) for task in waits.TASKS},
    'batches copied ahead are whole': waits.batches_arrive_whole,
    'masks are written late and whole': waits.masks_come_late_and_whole,
    'two processes': processes.two_processes,
    'a dead process ends the other': processes.a_dead_peer_ends_the_other,
    'nets cast by themselves in threads': ways.nets_cast_in_threads,
    'DataParallel': ways.data_parallel,
    'the GPU of a number is the current one': ways.current_device,
    'cuDNN chooses its algorithms': ways.cudnn_chooses,
    'float32 is IEEE float32': ways.float32_is_ieee,
    '--amp tf32 is TF32': ways.tf32_is_tf32,
    'segmenters resize in float32': ways.segmenters_resize_in_float32,
    "Elastic's up adds well enough in bf16": ways.up_may_add_in_bf16,
    'transposed convs add in float32': ways.transposed_convs_add_in_float32,
    'fused = plain': partial(ways.tests_alike, net='dla_elastic'),
    'fused and compiled = plain': partial(ways.tests_alike, net='resnext', compile=True),
    'compiled = eager, training': partial(ways.trains_alike, net='resnext', compile=True),
    'compiled = eager, training of segmentation': partial(ways.trains_alike, net='deeplab', compile=True),
    'channels-last = contiguous': partial(ways.trains_alike, net='resnext', channels_last=False),
    'recomputed = kept, deeplab': partial(ways.recomputes_alike, net='deeplab'),
    'recomputed = kept, densenet': partial(ways.recomputes_alike, net='densenet_elastic'),
    'fused SGD = plain': ways.fused_sgd_is_plain,
    'a killed run goes on': numbers.goes_on_after_a_kill,
    'memory of segmentation, 16 x 513 x 513': cost.segmentation_memory,
    '... in bf16': partial(cost.segmentation_memory, amp='bf16'),
    **{f'trained as the reference, {name}': partial(numbers.trajectory, name=name) for name in numbers.TRAININGS},
    **{f'golden {net}, float32 and bf16': partial(numbers.golden_in_less, net=net) for net in numbers.FAMILIES},
    **{f'golden {net}, float64': partial(numbers.golden_in_float64, net=net) for net in numbers.FAMILIES},
}


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add('--only', nargs='+', metavar='WORD', help='checks whose names hold one of these; default: all')
    out = Path('runs/gpu.md')
    add('-o', '--out', type=file_type('.md'), default=out, metavar='FILE.md', help='tables; numbers go to FILE.json')
    return parser


def main(args: Namespace) -> None:
    """Check, measure, print and write; exit with 1 if a check falls short."""
    if not torch.cuda.is_available():
        raise UserError('no GPU of NVIDIA here: tests/test_check_gpu.py does the same checks on a CPU')
    for path in args.out, args.out.with_suffix('.json'):
        check_writable(path)
    words = args.only or ['']
    chosen = {name: check for name, check in CHECKS.items() if any(word in name for word in words)}
    if not chosen:
        raise UserError(f'--only {" ".join(words)}: no such check; there are {", ".join(CHECKS)}')
    if not check(chosen, torch.device('cuda', torch.cuda.current_device()), args.out, with_rates=not args.only):
        raise SystemExit(1)


def check(checks: dict[str, Check], device: torch.device, out: Path, with_rates: bool) -> bool:
    """Do them and print and write the tables; whether none falls short."""
    lines, rows, rates = [], [], []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say('| check | | measured | bound | s |\n| --- | --- | --- | --- | ---: |')
    for name, function in checks.items():
        rows.append(do(name, function, device))
        say('| {name} | {status} | {measured} | {bound} | {seconds} |'.format(**rows[-1]))
        write(out, device, lines, checks=rows)  # should it be cut off
    if with_rates:
        say(f'\n| compiled, bf16, {cost.BATCH} at once | | images/s (range) | of a matrix product |')
        say('| --- | --- | ---: | ---: |')
        for row in cost.rates(device):
            rates.append(row)
            say(f'| {row["name"]} | {row["work"]} | {in_words(row, 0)} | {row["of_matrix_product"]:.0%} |')
            write(out, device, lines, checks=rows, rates=rates)
    return all(row['status'] != SHORT for row in rows)


def write(out: Path, device: torch.device, lines: list[str], **rows: list[Row]) -> None:
    """The tables and, beside them, all numbers, with what they are of."""
    facts = {'device': compute_of(device).name, 'torch': torch.__version__, 'cuda': torch.version.cuda}
    noted = json.dumps({**facts, 'cudnn': torch.backends.cudnn.version(), **rows}, indent=1)
    tables = '\n'.join([f'{facts["device"]}, PyTorch {facts["torch"]}\n', *lines])
    write_files({out: f'{tables}\n'.encode(), out.with_suffix('.json'): f'{noted}\n'.encode()})


def do(name: str, function: Check, device: torch.device) -> Row:
    """A line of the table; a check that raises falls short."""
    start, trace = time.monotonic(), ''
    try:
        if device.type == 'cuda':
            torch.cuda.empty_cache()
        result = function(device)
    except Exception as error:
        trace = ''.join(traceback.format_exception(error))
        message = ' '.join(f'{type(error).__name__}: {error}'.replace('|', '/').split())  # a cell of the table
        result = Result(False, message)
    status = {True: 'pass', False: SHORT, None: 'skipped'}[result.holds]
    row = {'name': name, 'status': status, 'measured': result.measured, 'bound': result.bound}
    return row | {'seconds': round(time.monotonic() - start, 1), 'trace': trace}


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
