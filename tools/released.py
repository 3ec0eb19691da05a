"""The paper's tables from the authors' released checkpoints: every file that is there, evaluated and set beside print.

    python -m tools.released WEIGHTS --imagenet DIR                            errors of the ImageNet files in WEIGHTS
    python -m tools.released WEIGHTS --imagenet DIR --coco DIR --voc DIR       all three tables
    python -m tools.released WEIGHTS --coco DIR --output runs/other            called again, it goes on where it was

WEIGHTS holds files under their released names, side by side or in the authors' folders (imagenet_models, coco_models,
pascal_models). The numbers are those that classify.py, multilabel_classify.py and segment.py print. The tables go to
stdout and into released.md, all numbers into released.json beside it, after every net. A net is not measured again
unless its file, the data or --amp has changed since.
"""

import hashlib
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import classify
import multilabel_classify
import segment
from data.class_names import DATA_SETS
from models.cost import count_macs, count_parameters
from tools.model_table import PUBLISHED
from tools.pretrained import TASKS
from utils.cli import Parser, add_device_argument, nonnegative_int, positive_int
from utils.device import DTYPES
from utils.errors import UserError, exit_cleanly, named
from utils.files import check_writable, lock, write_files
from utils.logger import ToolReporter, git_commit
from utils.multilabel import NAMES
from utils.signals import StopRequest
from utils.trainer import Task, run

Row = dict[str, Any]  # of released.json: a net with its cost, what is published and what was measured


@dataclass(frozen=True)
class Benchmark:
    """How the nets of a task are evaluated, and what its table shows."""

    title: str
    make_parser: Callable[[], ArgumentParser]  # of the script
    make_task: Callable[[Namespace], Task]
    measures: dict[str, str]  # the script's name of a result -> its column; all in %
    image_size: int  # for the multiply-accumulates
    index: str  # files or folders below DIR that change when the test data does


@dataclass(frozen=True)
class Released:
    """What a released file is of, and the results known for it in print, in %."""

    task: str
    arch: str
    published: dict[str, float] = field(default_factory=dict)
    source: str = ''


BENCHMARKS = {
    'imagenet': Benchmark(
        'ImageNet', classify.make_parser, classify.make_task, {'err1': 'Err@1', 'err5': 'Err@5'}, 224, 'val/*'
    ),
    'coco': Benchmark(
        'MS-COCO', multilabel_classify.make_parser, multilabel_classify.make_task,
        {name: name for name in (*NAMES, 'mAP')}, 224, 'annotations/instances_val2014.json'
    ),
    'voc': Benchmark(
        'PASCAL VOC', segment.make_parser, segment.evaluation, {'miou': 'Mean IoU'}, 513, 'VOC2012/list/val.txt'
    ),
}  # fmt: skip

IMAGENET_NETS = (
    'resnext50', 'resnext50_elastic', 'resnext101', 'resnext101_elastic', 'se_resnext50_elastic',
    'dla60x', 'dla60x_elastic', 'dla102x', 'densenet201', 'densenet201_elastic',
)  # fmt: skip
VOC_NETS = 'resnext50', 'resnext50_elastic', 'resnext101', 'resnext101_elastic', 'dla60x', 'dla60x_elastic'
COCO_NETS = *VOC_NETS, 'densenet201', 'densenet201_elastic'

# Every file that the authors released, in their folders.
RELEASED: dict[str, Released] = {
    **{f'imagenet_models/{net}.pth.tar': Released('imagenet', net, *PUBLISHED.get(net, ())) for net in IMAGENET_NETS},
    **{f'coco_models/coco_{net}.pth.tar': Released('coco', net) for net in COCO_NETS},
    **{f'pascal_models/deeplab_{net}_pascal_v3_original_epoch50.pth': Released('voc', net) for net in VOC_NETS},
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
    files = find_files(args)
    table, record = args.output / 'released.md', args.output / 'released.json'
    check_writable(table)
    check_writable(record)
    with lock(args.output), StopRequest() as stop:
        rows = read_rows(record)
        for name, path in files.items():
            wanted, noted = identity(name, path, args), rows.get(name, {})
            if 'error' in noted or not wanted.items() <= noted.items():
                rows[name] = {**measure(name, path, args, stop), **wanted}
                write_files({table: tables(rows).encode(), record: json.dumps(rows, indent=1).encode() + b'\n'})
            stop.check()
    print(tables(rows), end='')
    failed = [rows[name]['error'] for name in files if 'error' in rows[name]]
    if failed:
        raise UserError(f'{len(failed)} of {len(files)} files could not be measured: {"; ".join(failed)}')


def find_files(args: Namespace) -> dict[str, Path]:
    """The released files that are there for the data given; UserError if there are none, or a folder is missing."""
    tasks = [task for task in BENCHMARKS if getattr(args, task) is not None]
    if not tasks:
        raise UserError('nothing to evaluate on: give --imagenet DIR, --coco DIR or --voc DIR, or several of them')
    for folder in (args.weights, *(getattr(args, task) for task in tasks)):
        if not folder.is_dir():
            raise UserError(f'no folder {folder}')
    wanted = [name for name, released in RELEASED.items() if released.task in tasks]
    places = {name: (args.weights / Path(name).name, args.weights / name) for name in wanted}
    files = {name: path for name in wanted for path in places[name] if path.is_file()}
    if not files:
        names = [Path(name).name for name in wanted]
        raise UserError(f'{args.weights} holds no released file; their names are {named(names, len(names))}')
    return files


def identity(name: str, path: Path, args: Namespace) -> dict[str, str]:
    """On what a net is measured: as long as this is the same, so are the numbers."""
    task = RELEASED[name].task
    return {'file': stamp([path]), 'data': stamp(getattr(args, task).glob(BENCHMARKS[task].index)), 'amp': args.amp}


def stamp(paths: Iterable[Path]) -> str:
    """A hash of where files are, how long, and when they were written."""
    there = [(path.resolve(), path.stat()) for path in sorted(paths) if path.exists()]
    facts = [(str(path), status.st_size, status.st_mtime_ns) for path, status in there]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read_rows(record: Path) -> dict[str, Row]:
    """What earlier calls measured; UserError if the file is not theirs."""
    if not record.exists():
        return {}
    try:
        rows = dict(json.loads(record.read_bytes()))
        tables(rows)  # takes their form to pieces
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise UserError(f'{record} is damaged or not of this tool ({error!r}): remove it') from error
    return rows


def measure(name: str, path: Path, args: Namespace, stop: StopRequest) -> Row:
    """Evaluate a file by its task's script: its row of the table, with `error` if the file cannot be evaluated.

    Raises UserError for whatever else is wrong, such as the data, since that holds for the other files too.
    """
    released = RELEASED[name]
    reporter = ToolReporter(path.name)
    row = {'net': released.arch, **cost(released), 'published': released.published, 'source': released.source}

    def make_task(own: Namespace) -> Task:
        return replace(BENCHMARKS[released.task].make_task(own), reporter=lambda *_: reporter)

    try:
        measured = run(make_task, script_arguments(released, path, args), stop)
    except UserError as error:
        if str(path) not in str(error):
            raise
        reporter.say(f'not measured: {error}')
        return {**row, 'error': ' '.join(str(error).split())}
    difference = {key: measured[key] - value for key, value in released.published.items()}
    return {**row, 'measured': measured, 'difference': difference, 'torch': torch.__version__, 'git': git_commit()}


def script_arguments(released: Released, path: Path, args: Namespace) -> Namespace:
    """The arguments with which the task's script evaluates a file."""
    data = str(getattr(args, released.task))
    words = [f'--data={data}', '--exp=original'] if released.task == 'voc' else ['--evaluate', '--', data]
    own = BENCHMARKS[released.task].make_parser().parse_args(words)
    own.arch, own.resume, own.output = released.arch, path, args.output / path.stem  # the last for predicted masks
    own.device, own.amp = args.device, args.amp
    if args.batch_size is not None:
        own.batch_size, own.num_gpus = args.batch_size, None
    if args.workers is not None:
        own.workers = args.workers
    return own


def cost(released: Released) -> dict[str, int]:
    """Parameters and multiply-accumulates of a net with the data set's number of classes."""
    with torch.device('meta'):
        net = TASKS[released.task][released.arch](num_classes=len(DATA_SETS[released.task]))
    return {'parameters': count_parameters(net), 'macs': count_macs(net, BENCHMARKS[released.task].image_size)}


def tables(rows: Mapping[str, Row]) -> str:
    """A table in markdown per task that has rows, in the order of the released files; '-' where nothing is known."""
    tasks = [task for task in BENCHMARKS if any(RELEASED[name].task == task for name in rows)]
    return '\n'.join(table(task, rows) for task in tasks)


def table(task: str, rows: Mapping[str, Row]) -> str:
    """The table of a task, and below it what was not measured and why."""
    benchmark, columns = BENCHMARKS[task], BENCHMARKS[task].measures
    names = [name for name, released in RELEASED.items() if released.task == task]
    rows, absent = [rows[name] for name in names if name in rows], [name for name in names if name not in rows]
    header = ['net', 'parameters (M)', f'GMACs at {benchmark.image_size}', 'published (%)', 'source']
    header += [f'{column} (%)' for column in columns.values()] + ['difference']
    lines = [header, ['---', '---:', '---:', '---', '---', *['---:'] * len(columns), '---']]
    for row in rows:
        measured, difference = row.get('measured', {}), row.get('difference', {})
        cells = [row['net'], f'{row["parameters"] / 1e6:.2f}', f'{row["macs"] / 1e9:.3f}']
        cells += [in_words(row['published'], columns, '{}'), row['source'] or '-']
        cells += [f'{measured[key]:.2f}' if measured else '-' for key in columns]
        lines.append([*cells, in_words(difference, columns, '{:+.2f}')])
    notes = [f'- {row["net"]} was not measured: {row["error"]}' for row in rows if 'error' in row]
    notes += [f'- {row["net"]} was measured with --amp {row["amp"]}.' for row in rows if row['amp'] != 'off']
    if absent:
        notes.append(f'- Files that were not there: {named([Path(name).name for name in absent], len(absent))}.')
    text = [f'## {benchmark.title}', '', *(f'| {" | ".join(cells)} |' for cells in lines), '', *notes]
    return '\n'.join(text).rstrip() + '\n'


def in_words(values: Mapping[str, float], columns: Mapping[str, str], form: str) -> str:
    """Such as `Err@1 22.1, Err@5 6.0`; '-' where there are none."""
    return ', '.join(f'{columns[key]} {form.format(value)}' for key, value in values.items()) or '-'


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
