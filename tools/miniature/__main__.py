"""The paper's central comparison at a size that a laptop repeats, with controls that tell scale from depth.

    python -m tools.miniature                                    two data sets, six nets, seeds 0 to 4
    python -m tools.miniature --seeds 0,1 --device cuda          fewer seeds, on a GPU
    python -m tools.miniature --output runs/other                called again, it goes on where it was stopped

    base               a shallow ResNeXt 8x4d with (1, 2, 3, 1) blocks
    elastic            its Elastic form, (2, 4, 2, 1): the first two stages doubled, the third one block less, as the
                       paper makes (6, 8, 5, 3) of (3, 4, 6, 3)
    deep               as deep as elastic, all blocks at one scale: the same parameters, more multiply-accumulates
    deep-equal-cost    the same with widths 24, 56, 104, 208 instead of 32, 64, 128, 256: within 1 % the
                       multiply-accumulates of base and of elastic, 7 % fewer parameters than elastic
    regnety            a RegNetY of torchvision's builder with (2, 4, 2, 1) blocks
    regnety-elastic    the same made elastic by models/convert.py: the same parameters, fewer multiply-accumulates

The recipe (tools/miniature/study.py) is the same for all, was tuned on the base net alone and is fixed. Every net is
tested once, after its last update. A run takes one thread, whatever goes on beside it. Then the trained Elastic nets
are looked at: which scale their blocks prefer over the object's size, and what each branch is for. Tables of errors,
of paired differences with 95 % intervals and of policies go to stdout and into miniature.md, pictures into
miniature.png and miniature_policy.png, and all numbers into miniature.json and miniature_policy.json.
"""

from argparse import Namespace
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from data.fashion_mnist import SOURCE
from tools.miniature import policy, report
from tools.miniature.jobs import side_by_side
from tools.miniature.study import CLASSES, NETS, RECIPE, Study, costs
from tools.results import check_results, write_results
from utils.cli import Parser, add_device_argument, positive_int, random_seed
from utils.device import Compute
from utils.errors import exit_cleanly
from utils.files import check_writable, lock, write_files
from utils.loader import available_cores


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add('--seeds', type=seeds, default='0,1,2,3,4', metavar='N,N,...', help='of initial values, order and flips')
    add('--source', type=Path, default=SOURCE, metavar='DIR', help="folder of Fashion-MNIST's four .gz files")
    add('--output', type=Path, default=Path('runs/miniature'), metavar='DIR', help='for pictures, runs and results')
    add('-j', '--jobs', type=positive_int, default=available_cores(), metavar='N', help='runs side by side')
    add_device_argument(add)
    return parser


def main(args: Namespace) -> None:
    """Do what is missing, the nets in turn for each seed; print, draw and note what came out."""
    errors, policies = args.output / 'miniature.png', args.output / 'miniature_policy.png'
    compute = Compute(args.device, all_gpus=False)
    for picture in errors, policies:
        check_results(picture)
    check_writable(errors.with_suffix('.md'))
    study = Study(args.output, args.source, RECIPE, args.device)
    with lock(args.output):
        study.keep_recipe()
        sets = study.data_sets()
        runs = [(data, net, seed) for seed in args.seeds for data in sets for net in NETS]
        results = side_by_side({study.noted(*run): partial(study.carry_out, *run) for run in runs}, args.jobs)
        nets = [(study, data, seed) for data in sets for seed in args.seeds]
        looks = side_by_side({policy.noted(*net): partial(policy.look_at, *net) for net in nets}, args.jobs)
    cost = {data: costs(CLASSES[data]) for data in sets}
    text = f'{report.tables(results, cost)}\n\n{policy.tables(looks)}'
    print(text)
    write_files({errors.with_suffix('.md'): f'{text}\n'.encode()})
    facts = {'recipe': asdict(RECIPE), 'nets': NETS, 'device': str(compute), 'torch': torch.__version__}
    write_results(report.draw(results), {**facts, 'costs': cost, 'results': results}, errors)
    write_results(policy.draw(looks), {**facts, 'looks': looks}, policies)


def seeds(text: str) -> list[int]:
    """Different whole numbers from 0 on, separated by commas."""
    values = [random_seed(part) for part in text.split(',')]
    if len(set(values)) < len(values):
        raise ValueError(text)
    return values


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
