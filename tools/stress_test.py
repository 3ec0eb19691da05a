"""The error of classifiers as the objects in their test pictures shrink and grow.

    python -m tools.stress_test CHECKPOINT DIR                                  DIR/val/CLASS/*.jpg at five scales
    python -m tools.stress_test BASE ELASTIC DIR --out stress.png               two nets in one plot and one table
    python -m tools.stress_test CHECKPOINT DIR --factors 0.25,0.5,1,2,4 --image-size 64

Every picture is resized F times as large as in the usual test, for each factor F, then its centre is cropped; where it
no longer fills the crop the rest has the mean colour. At factor 1 this is `classify.py --evaluate`. The table of
Err@1 goes to stdout, a plot to --out and all numbers into a JSON file beside it.
"""

import math
import os
from argparse import Namespace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

import models
from data.image_folder import PictureFolder, open_folder, scaled_crop
from tools.pretrained import open_classifier
from utils.cli import Parser, add_out_argument, add_test_arguments, scales
from utils.device import Compute
from utils.errors import UserError, exit_cleanly
from utils.files import check_results, write_results
from utils.loader import MEAN, DeviceLoader, EvalBatches
from utils.logger import ToolReporter
from utils.metrics import TopErrors
from utils.signals import StopRequest
from utils.trainer import TrainingStep, evaluate


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('checkpoints', type=Path, nargs='+', metavar='CHECKPOINT', help='of classify.py')
    parser.add_argument('data', type=Path, metavar='DIR', help='folder with val/')
    parser.add_argument('--factors', type=scales, default='0.5,0.71,1,1.41,2', metavar='F,F,...', help='sizes')
    parser.add_argument('-a', '--arch', choices=list(models.classifiers), action='append', metavar='ARCH',
                        help='once per checkpoint, where they do not say')  # fmt: skip
    add_test_arguments(parser)
    add_out_argument(parser, 'stress_test.png')
    return parser


def main(args: Namespace) -> None:
    """Evaluate every net at every factor; print, draw and note the errors."""
    factors = sorted(set(args.factors))
    pictures = [open_folder(args.data / 'val', scaled_crop(args.image_size, factor)) for factor in factors]
    learners = open_learners(args, pictures[0].classes)
    check_results(args.out)
    with StopRequest() as stop:
        results = {
            name: [
                test(training_step, images, args, ToolReporter(f'{name}, {factor:g}'), stop)
                for factor, images in zip(factors, pictures, strict=True)
            ]
            for name, training_step in learners.items()
        }
    print(table(factors, results))
    noted = {'checkpoints': args.checkpoints, 'data': args.data, 'images': len(pictures[0])}
    curves = {name: {key: [point[key] for point in points] for key in points[0]} for name, points in results.items()}
    noted |= {'image_size': args.image_size, 'factors': factors, 'results': curves}
    write_results(draw(factors, results, pictures), noted, args.out)


def open_learners(args: Namespace, classes: list[str]) -> dict[str, TrainingStep]:
    """The nets to test, by the names they have in table and plot."""
    paths, archs, compute = args.checkpoints, args.arch or [None] * len(args.checkpoints), Compute(args.device)
    if len(archs) != len(paths):
        raise UserError(f'--arch is given {len(archs)} times for {len(paths)} checkpoints')
    opened = [open_classifier(path, arch, 'imagenet', classes) for path, arch in zip(paths, archs, strict=True)]
    names = names_of([identity.arch for _, identity in opened], paths)
    return {name: training_step_of(model, compute) for name, (model, _) in zip(names, opened, strict=True)}


def names_of(archs: list[str], paths: list[Path]) -> list[str]:
    """The names of the nets; behind that of several checkpoints, each one's path from the folder they are all in."""
    resolved = [path.resolve() for path in paths]
    folder = os.path.commonpath([path.parent for path in resolved])
    return [
        arch if archs.count(arch) == 1 else f'{arch} ({path.relative_to(folder)})'
        for arch, path in zip(archs, resolved, strict=True)
    ]


def test(
    training_step: TrainingStep, images: PictureFolder, args: Namespace, progress: ToolReporter, stop: StopRequest
) -> dict[str, float]:
    """Loss, err1 and err5 as classify.py --evaluate measures them."""
    loader = DeviceLoader(images, EvalBatches([range(len(images))], args.batch_size), training_step.compute, args.workers)
    return evaluate(training_step, loader, TopErrors(training_step.compute.device), progress, stop)


def table(factors: list[float], results: dict[str, list[dict[str, float]]]) -> str:
    """Err@1 in %, a row per net and a column per factor, in markdown."""
    rows = [['Err@1 (%) with objects F times as large', *(f'{factor:g}' for factor in factors)]]
    rows.append(['---', *['---:'] * len(factors)])
    rows += [[name, *(f'{point["err1"]:.2f}' for point in points)] for name, points in results.items()]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in rows)


def draw(factors: list[float], results: dict[str, list[dict[str, float]]], pictures: list[PictureFolder]) -> Figure:
    """Above, one picture as the nets saw it at each factor; below, a curve of Err@1 per net."""
    heights = [1.5, 3.2 + 0.2 * len(results)]
    figure = Figure(figsize=(7, sum(heights)), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    for panel, factor, images in zip(above.subplots(1, len(factors), squeeze=False)[0], factors, pictures, strict=True):
        show(panel, images[len(images) // 2][0])
        panel.set_title(f'{factor:g}', fontsize=9)
    draw_curves(below.subplots(), factors, results, len(pictures[0]))
    below.legend(loc='outside lower center', fontsize=9, frameon=False)
    return figure


def show(panel: Axes, pixels: Tensor) -> None:
    """A crop, uint8 4 x H x W, of the mean colour where there is no picture."""
    around = torch.tensor(MEAN).mul(255).byte().view(3, 1, 1)
    panel.imshow(torch.where(pixels[3:] > 0, pixels[:3], around).permute(1, 2, 0).numpy())
    panel.axis('off')


def draw_curves(panel: Axes, factors: list[float], results: dict[str, list[dict[str, float]]], images: int) -> None:
    """Err@1 over the factors, with the standard error that a test of so many images has."""
    for name, points in results.items():
        errors = [point['err1'] for point in points]
        spread = [math.sqrt(error * (100 - error) / images) for error in errors]
        panel.errorbar(factors, errors, spread, marker='o', capsize=3, label=name)
    panel.set_xscale('log')
    panel.set_xticks(factors, [f'{factor:g}' for factor in factors])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set(xlabel='size of the objects (1: the usual test)', ylabel='Err@1 (%), standard error', ylim=(0, 100))
    panel.grid(alpha=0.3)


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
