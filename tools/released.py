"""The paper's tables from the authors' released checkpoints: every file that is there, evaluated and set beside print.

    python -m tools.released WEIGHTS --imagenet DIR                            errors of the ImageNet files in WEIGHTS
    python -m tools.released WEIGHTS --imagenet DIR --coco DIR --voc DIR       all three tables
    python -m tools.released WEIGHTS --coco DIR --output runs/other            called again, it goes on where it was

WEIGHTS holds files under their released names, side by side or in the authors' folders (imagenet_models, coco_models,
pascal_models). The numbers are those that classify.py, multilabel_classify.py and segment.py print. The tables go to
stdout and into released.md, all numbers into released.json beside it, after every net. A net that is in released.json
is not measured again unless its file or the folder of the data is another: remove released.json to start anew.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

import classify
import multilabel_classify
import segment
from data.class_names import DATA_SETS
from models.cost import count_macs, count_parameters
from tools import markdown
from tools.model_table import PUBLISHED
from tools.pretrained import IMAGE_SIZES, TASKS
from tools.results import ToolReporter
from utils.cli import Parser, add_device_argument, nonnegative_int, positive_int
from utils.device import DTYPES
from utils.errors import UserError, exit_cleanly, reading
from utils.files import check_writable, lock, write_files
from utils.logger import git_commit
from utils.multilabel import NAMES
from utils.signals import SignalHandler

Row = dict[str, Any]  # of released.json: a net with its cost, what is published and what was measured


class Benchmark(NamedTuple):
    """How the nets of a task are evaluated, and what its table shows."""

    title: str
    script: ModuleType
    measures: dict[str, str]  # the script's name of a result -> its column; all in %


BENCHMARKS = {
    'imagenet': Benchmark('ImageNet', classify, {'err1': 'Err@1', 'err5': 'Err@5'}),
    'coco': Benchmark('MS-COCO', multilabel_classify, {name: name for name in (*NAMES, 'mAP')}),
    'voc': Benchmark('PASCAL VOC', segment, {'miou': 'Mean IoU'}),
}

IMAGENET_NETS = (
    'resnext50', 'resnext50_elastic', 'resnext101', 'resnext101_elastic', 'se_resnext50_elastic',
    'dla60x', 'dla60x_elastic', 'dla102x', 'densenet201', 'densenet201_elastic',
)  # fmt: skip
VOC_NETS = 'resnext50', 'resnext50_elastic', 'resnext101', 'resnext101_elastic', 'dla60x', 'dla60x_elastic'
COCO_NETS = *VOC_NETS, 'densenet201', 'densenet201_elastic'

# Every file that the authors released, in their folders: of which task and net.
RELEASED: dict[str, tuple[str, str]] = {
    **{f'imagenet_models/{net}.pth.tar': ('imagenet', net) for net in IMAGENET_NETS},
    **{f'coco_models/coco_{net}.pth.tar': ('coco', net) for net in COCO_NETS},
    **{f'pascal_models/deeplab_{net}_pascal_v3_original_epoch50.pth': ('voc', net) for net in VOC_NETS},
}


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add('weights', type=Path, metavar='WEIGHTS', help='folder with released files')
    add('--imagenet', type=Path, metavar='DIR', help='as for classify.py')
    add('--coco', type=Path, metavar='DIR', help='as for multilabel_classify.py')
    add('--voc', type=Path, metavar='DIR', help='the folder with VOC2012/, as for segment.py --data')
    add('--output', type=Path, default=Path('runs/released'), metavar='DIR', help='for the tables and predicted masks')
    add('-b', '--batch-size', type=positive_int, metavar='N', help="images at once; default: the scripts' own")
    add('-j', '--workers', type=nonnegative_int, metavar='N', help="loading processes; default: the scripts' own")
    add('--amp', choices=list(DTYPES), default='off', help='mixed precision')
    add_device_argument(add)
    return parser


def main(args: Namespace) -> None:
    """Measure what has not been measured yet, then print the tables; UserError at the end if files could not be."""
    files, failed = find_files(args), []
    table, record = args.output / 'released.md', args.output / 'released.json'
    check_writable(table, record)
    with lock(args.output), SignalHandler() as stop:
        rows = read_rows(record)
        for name, path in files.items():
            try:
                inputs = inputs_of(name, path, args)
                if not inputs.items() <= rows.get(name, {}).items():
                    rows.pop(name, None)  # of another file
                    rows[name] = measure(name, path, args) | inputs
            except UserError as error:
                if str(path) not in str(error):  # of the data, for instance, which the other files need too
                    raise
                failed.append(str(error))
            write_files({table: tables(rows).encode(), record: json.dumps(rows, indent=1).encode() + b'\n'})
            stop.check()
    print(tables(rows), end='')
    if failed:
        raise UserError(f'{len(failed)} of {len(files)} files could not be measured: {"; ".join(failed)}')


def find_files(args: Namespace) -> dict[str, Path]:
    """The released files that are there for the data given; UserError if there are none, or a folder is missing."""
    folders = {task: getattr(args, task) for task in BENCHMARKS if getattr(args, task) is not None}
    if not folders:
        raise UserError('nothing to evaluate on: give --imagenet DIR, --coco DIR or --voc DIR, or several of them')
    for folder in (args.weights, *folders.values()):
        if not folder.is_dir():
            raise UserError(f'no folder {folder}')
    names = [name for name, (task, _) in RELEASED.items() if task in folders]
    places = [(name, place) for name in names for place in (args.weights / Path(name).name, args.weights / name)]
    files = {name: place for name, place in places if place.is_file()}
    if not files:
        message = ', '.join(Path(name).name for name in names)
        raise UserError(f'{args.weights} holds no released file; their names are {message}')
    return files


def inputs_of(name: str, path: Path, args: Namespace) -> Row:
    """The file and the folder that a net is evaluated on: where one is another, it is measured anew."""
    data = getattr(args, RELEASED[name][0])
    return {'weights': str(path.resolve()), 'modified': path.stat().st_mtime, 'data': str(data.resolve())}


def read_rows(record: Path) -> dict[str, Row]:
    """What earlier calls measured; UserError if the file is not theirs."""
    if not record.exists():
        return {}
    with reading(f'{record} is damaged or not of this tool: remove it'):
        rows = dict(json.loads(record.read_bytes()))
        tables(rows)  # takes their form to pieces
        return rows


def measure(name: str, path: Path, args: Namespace) -> Row:
    """Evaluate a file by its task's script: its row of the table."""
    task, arch = RELEASED[name]
    published, source = PUBLISHED.get(arch, ({}, '')) if task == 'imagenet' else ({}, '')
    with torch.device('meta'):
        net = TASKS[task][arch](num_classes=len(DATA_SETS[task]))
    own = script_arguments(task, arch, path, args)
    measured = BENCHMARKS[task].script.main(own, reporter=lambda *_: ToolReporter(path.name))
    return {
        'net': arch,
        'parameters': count_parameters(net),
        'macs': count_macs(net, IMAGE_SIZES[task]),
        'published': published,
        'source': source,
        'measured': measured,
        'difference': {key: measured[key] - value for key, value in published.items()},
        'amp': args.amp,
        'torch': torch.__version__,
        'git': git_commit(),
    }


def script_arguments(task: str, arch: str, path: Path, args: Namespace) -> Namespace:
    """The arguments with which the task's script evaluates a file."""
    data = str(getattr(args, task))
    words = [f'--data={data}', '--exp=original'] if task == 'voc' else ['--evaluate', '--', data]
    own = BENCHMARKS[task].script.make_parser().parse_args(words)
    own.arch, own.resume, own.output = arch, path, args.output / path.stem  # the last for predicted masks
    own.device, own.amp = args.device, args.amp
    if args.batch_size is not None:
        own.batch_size, own.num_gpus = args.batch_size, None
    if args.workers is not None:
        own.workers = args.workers
    return own


def tables(rows: Mapping[str, Row]) -> str:
    """A table in markdown per task that has rows, in the order of the released files; '-' where nothing is known."""
    tasks = {RELEASED[name][0] for name in rows}
    return '\n'.join(table(task, rows) for task in BENCHMARKS if task in tasks)


def table(task: str, rows: Mapping[str, Row]) -> str:
    """The table of a task, and below it what it lacks."""
    columns = BENCHMARKS[task].measures
    names = [name for name, (of, _) in RELEASED.items() if of == task]
    there = [rows[name] for name in names if name in rows]
    header = ['net', 'parameters (M)', f'GMACs at {IMAGE_SIZES[task]}', 'published (%)', 'source']
    header += [*(f'{column} (%)' for column in columns.values()), 'difference']
    text = markdown.table(header, 'lrrll' + 'r' * len(columns) + 'l', [cells(row, columns) for row in there])
    notes = [f'- {row["net"]} was measured with --amp {row["amp"]}.' for row in there if row['amp'] != 'off']
    absent = ', '.join(Path(name).name for name in names if name not in rows)
    notes += [f'- Files that were not measured: {absent}.'] if absent else []
    return '\n'.join([f'## {BENCHMARKS[task].title}', '', text, '', *notes]).rstrip() + '\n'


def cells(row: Row, columns: Mapping[str, str]) -> list[str]:
    """A row of the table; published numbers and differences such as `Err@1 22.1, Err@5 6.0`."""
    published = ', '.join(f'{columns[key]} {value}' for key, value in row['published'].items())
    differing = ', '.join(f'{columns[key]} {value:+.2f}' for key, value in row['difference'].items())
    cost = f'{row["parameters"] / 1e6:.2f}', f'{row["macs"] / 1e9:.3f}'
    errors = [f'{row["measured"][key]:.2f}' for key in columns]
    return [row['net'], *cost, published or '-', row['source'] or '-', *errors, differing or '-']


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
