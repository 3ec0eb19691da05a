"""Write the sample set: pictures of textured shapes at strongly varying scales, in the layouts of all three tasks.

    python data/sample.py OUT                                    OUT/imagenet, OUT/coco, OUT/VOCdevkit from 560 scenes
    python data/sample.py OUT --train 40 --val 20 --seed 1       fewer and other scenes

The same arguments give the same files, whatever the number of workers. A set that is there already is left alone if it
was written with the same arguments.
"""

import json
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

if not __package__:  # run as a file: the packages are in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from tqdm import tqdm

from data.layouts import write_index, write_scene
from data.scenes import CLASS_NAMES, render_scene
from utils.cli import LARGEST, Parser, number_type, positive_int, random_seed
from utils.errors import exit_cleanly
from utils.files import staged_folder
from utils.loader import available_cores
from utils.signals import end_with_parent

VERSION = 1  # of the generator: raised when the same arguments begin to give other pictures
PARTS = 'train', 'val'
OBJECTS = 4, 1, 3, 0, 4, 1, 2, 3, 4, 1, 3, 2, 4, 1, 3, 4, 2, 3, 1, 4  # in one scene after the other, over and over
at_least_4 = number_type('at_least_4', int, 4, LARGEST)  # scenes: of fewer, a class would be in none


def make_parser() -> Parser:
    """Make the parser of the arguments."""
    parser = Parser(__doc__)
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to write')
    parser.add_argument('--train', type=at_least_4, default=400, metavar='N', help='scenes to learn from, 4 or more')
    parser.add_argument('--val', type=at_least_4, default=160, metavar='N', help='scenes held out, 4 or more')
    parser.add_argument('--seed', type=random_seed, default=0, help='of all random choices')
    parser.add_argument('-j', '--workers', type=positive_int, default=available_cores(), help='processes that draw')
    return parser


def main(args: Namespace) -> None:
    """Write the set that the arguments describe, unless it is there already."""
    settings = {'version': VERSION, 'seed': args.seed, 'train': args.train, 'val': args.val, 'classes': CLASS_NAMES}
    settings = json.dumps(settings, indent=1) + '\n'
    with suppress(OSError, UnicodeDecodeError):
        if (args.out / 'sample.json').read_text() == settings:
            print(f'{args.out} holds this sample set already')
            return
    with staged_folder(args.out) as folder:
        write_sample(folder, args.seed, {'train': args.train, 'val': args.val}, args.workers)
        (folder / 'sample.json').write_text(settings)
    print(f'{args.out}: {args.train} + {args.val} scenes')


def write_sample(root: Path, seed: int, scenes: dict[str, int], workers: int) -> None:
    """Write a set of so many scenes per part into the empty folder `root`."""
    first = 1
    with pool_map(workers) as map_:
        for part in PARTS:
            numbers = range(first, first + scenes[part])
            tasks = zip(numbers, plan(seed, part, scenes[part]), strict=True)
            annotations = map_(partial(draw_scene, root, seed, part, first), tasks)
            progress = tqdm(annotations, part, len(numbers), disable=None, leave=False)
            write_index(root, part, numbers, [annotation for scene in progress for annotation in scene])
            first = numbers.stop


def plan(seed: int, part: str, scenes: int) -> list[tuple[int, ...]]:
    """Choose the labels of the objects of each scene, each label as often as the others."""
    rng = np.random.default_rng((seed, PARTS.index(part)))
    counts = [OBJECTS[index % len(OBJECTS)] for index in range(scenes)]
    rounds = -(-sum(counts) // len(CLASS_NAMES))
    labels = np.concatenate([rng.permutation(len(CLASS_NAMES)) + 1 for _ in range(rounds)]).tolist()
    ends = np.cumsum(counts).tolist()
    return [tuple(labels[end - count : end]) for count, end in zip(counts, ends, strict=True)]


def draw_scene(root: Path, seed: int, part: str, first: int, task: tuple[int, tuple[int, ...]]) -> list[dict]:
    """Draw and write a scene, given as its number and its labels; returns its annotations."""
    number, labels = task
    rng = np.random.default_rng((seed, PARTS.index(part), number - first))
    return write_scene(root, part, number, render_scene(rng, labels))


@contextmanager
def pool_map(workers: int) -> Iterator:
    """Yield a `map` whose calls are spread over processes and whose results come in order."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, initializer=_begin_worker) as pool:
        yield partial(pool.map, chunksize=8)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to obey
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not a handler of the parent's, which may only note it
    end_with_parent()


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
