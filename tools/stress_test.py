"""The error of classifiers as the objects in their test pictures shrink and grow.

    python -m tools.stress_test CHECKPOINT DIR                                  DIR/val/CLASS/*.jpg at five scales
    python -m tools.stress_test BASE ELASTIC DIR --out stress.png               two nets in one plot and one table
    python -m tools.stress_test CHECKPOINT DIR --factors 0.25,0.5,1,2,4 --image-size 64

Every picture is resized F times as large as in the usual test, for each factor F, then its center is cropped; where it
no longer fills the crop the rest has the mean color. At factor 1 this is `classify.py --evaluate`. The table of
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
from torch import nn
from torch.nn.functional import cross_entropy

from data.image_folder import ImageFolder, scaled_crop
from models.fused import fused
from tools import markdown
from tools.pictures import add_test_arguments, outputs_of
from tools.pretrained import add_arch_argument, open_classifier
from tools.results import ToolReporter, add_out_argument, check_results, write_results
from utils.cli import Parser, scales
from utils.errors import UserError, exit_cleanly
from utils.loader import MEAN
from utils.metrics import TopKError

Results = dict[str, dict[str, list[float]]]  # of each net its loss, err1 and err5, at each factor


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('checkpoints', type=Path, nargs='+', metavar='CHECKPOINT', help='of classify.py')
    parser.add_argument('data', type=Path, metavar='DIR', help='folder with val/')
    parser.add_argument('--factors', type=scales, default='0.5,0.71,1,1.41,2', metavar='F,F,...', help='sizes')
    add_arch_argument(parser, action='append', help='once per checkpoint, where they do not say')
    add_test_arguments(parser)
    add_out_argument(parser, 'stress_test.png')
    return parser


def main(args: Namespace) -> None:
    """Evaluate every net at every factor; print, draw and note the errors."""
    factors, results = sorted(set(args.factors)), {}
    pictures = [ImageFolder(args.data / 'val', scaled_crop(args.image_size, factor)) for factor in factors]
    nets = open_nets(args, pictures[0].classes)
    check_results(args.out)
    for name, net in nets.items():
        points = [
            test(net, images, args, f'{name}, {factor:g}') for factor, images in zip(factors, pictures, strict=True)
        ]
        results[name] = {measure: [point[measure] for point in points] for measure in points[0]}
    rows = [[name, *(f'{error:.2f}' for error in result['err1'])] for name, result in results.items()]
    header = ['Err@1 (%) with objects F times as large', *(f'{factor:g}' for factor in factors)]
    print(markdown.table(header, 'l' + 'r' * len(factors), rows))
    noted = {'checkpoints': args.checkpoints, 'data': args.data, 'images': len(pictures[0])}
    noted |= {'image_size': args.image_size, 'factors': factors, 'results': results}
    write_results(draw(factors, results, pictures), noted, args.out)


def open_nets(args: Namespace, classes: list[str]) -> dict[str, nn.Module]:
    """The nets to test, by the names they have in table and plot.

    Behind the name of several checkpoints stands each one's path from the folder they are all in.
    """
    paths, archs = args.checkpoints, args.arch or [None] * len(args.checkpoints)
    if len(archs) != len(paths):
        raise UserError(f'--arch is given {len(archs)} times for {len(paths)} checkpoints')
    opened = [
        open_classifier(path, arch, args.image_size, 'imagenet', classes)
        for path, arch in zip(paths, archs, strict=True)
    ]
    names = [identity.arch for _, identity in opened]
    folder = os.path.commonpath([path.resolve().parent for path in paths])
    return {
        name if names.count(name) == 1 else f'{name} ({path.resolve().relative_to(folder)})': fused(net)
        for name, path, (net, _) in zip(names, paths, opened, strict=True)
    }


def test(net: nn.Module, images: ImageFolder, args: Namespace, label: str) -> dict[str, float]:
    """Loss, err1 and err5 as classify.py --evaluate measures them."""
    logits, labels = map(torch.stack, zip(*outputs_of(net, images, args), strict=True))
    errors = TopKError(logits.device)
    errors.update(cross_entropy(logits, labels), logits, labels)
    results = errors.compute()
    if not math.isfinite(results['loss']):
        raise UserError(f'{label} gives a loss that is not finite')
    ToolReporter(label).say(errors.summary(results))
    return results


def draw(factors: list[float], results: Results, pictures: list[ImageFolder]) -> Figure:
    """Above, one picture as the nets saw it at each factor; below, a curve of Err@1 per net."""
    heights = [1.5, 3.2 + 0.2 * len(results)]
    figure = Figure(figsize=(7, sum(heights)), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    around = torch.tensor(MEAN).mul(255).byte().view(3, 1, 1)
    for panel, factor, images in zip(above.subplots(1, len(factors), squeeze=False)[0], factors, pictures, strict=True):
        pixels, _ = images[len(images) // 2]
        panel.imshow(torch.where(pixels[3:] > 0, pixels[:3], around).permute(1, 2, 0).numpy())
        panel.axis('off')
        panel.set_title(f'{factor:g}', fontsize=9)
    draw_curves(below.subplots(), factors, results, len(pictures[0]))
    below.legend(loc='outside lower center', fontsize=9, frameon=False)
    return figure


def draw_curves(panel: Axes, factors: list[float], results: Results, images: int) -> None:
    """Err@1 over the factors, with the standard error that a test of so many images has."""
    for name, result in results.items():
        spread = [math.sqrt(error * (100 - error) / images) for error in result['err1']]
        panel.errorbar(factors, result['err1'], spread, marker='o', capsize=3, label=name)
    panel.set_xscale('log')
    panel.set_xticks(factors, [f'{factor:g}' for factor in factors])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set(xlabel='size of the objects (1: the usual test)', ylabel='Err@1 (%), standard error', ylim=(0, 100))
    panel.grid(alpha=0.3)


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
