"""Draws what a multi-label net sees: validation images with true and predicted labels and their scores.

    python -m tools.prediction_sheet CHECKPOINT DIR OUT.png                    24 images of DIR, in COCO's layout
    python -m tools.prediction_sheet CHECKPOINT DIR OUT.png --images 60 --image-size 128

Below each image stand its labels: found in green, missed in grey, and what is not there in red, with the probability
that the net gives them.
"""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.coco import MultiLabelImages, open_part, squashed
from data.image_folder import pil_loader
from tools.pictures import add_test_arguments, outputs_of
from tools.pretrained import add_arch_argument, open_classifier
from utils.cli import Parser, file_type, positive_int
from utils.errors import exit_cleanly
from utils.files import check_writable, write_figure

SIDE = 1.85  # of a panel, in inches
LINE = 9  # of text, in points
COLORS = {'found': 'green', 'missed': 'grey', 'not there': 'red'}


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='of multilabel_classify.py')
    parser.add_argument('data', type=Path, metavar='DIR', help='folder with annotations/ and val2014/')
    parser.add_argument('out', type=file_type('.png'), metavar='OUT.png', help='picture to write')
    parser.add_argument('--images', type=positive_int, default=24, metavar='N', help='how many, spread over the set')
    parser.add_argument('--year', choices=['2014', '2017'], default='2014', help='of the folder and file names')
    add_arch_argument(parser)
    add_test_arguments(parser)
    return parser


def main(args: Namespace) -> None:
    """Predict and draw."""
    check_writable(args.out)
    data = open_part(args.data, 'val', args.year, squashed(args.image_size))
    chosen = np.linspace(0, len(data) - 1, min(args.images, len(data))).astype(int)
    write_figure(draw(data, chosen, predict(args, data, chosen)), args.out, dots_per_inch=70)


def predict(args: Namespace, data: MultiLabelImages, chosen: np.ndarray) -> np.ndarray:
    """The probability of each class in each of the chosen images, n x C."""
    model, _ = open_classifier(args.checkpoint, args.arch, args.image_size, 'coco', data.classes)
    return torch.stack([logits.sigmoid() for logits, _ in outputs_of(model, data, args, [chosen])]).numpy()


def draw(data: MultiLabelImages, chosen: np.ndarray, probabilities: np.ndarray, columns: int = 6) -> Figure:
    """A grid of the chosen images with their labels."""
    rows, most = -(-len(chosen) // columns), (data.present[chosen].any(1) | (probabilities > 0.5)).sum(1).max()
    below = 0.1 + most * LINE / 72  # inches for the labels of the image that has most
    height = rows * (SIDE + below)
    figure = Figure(figsize=(1.2 * SIDE * columns, height))
    figure.subplots_adjust(0.02, below / height, 0.98, 1, hspace=below / SIDE)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.axis('off')
    for panel, index, probability in zip(panels[: len(chosen)], chosen, probabilities, strict=True):
        panel.imshow(pil_loader(str(data.folder / str(data.files[index]))))
        write_labels(panel, data.classes, data.present[index].any(0), probability)
    return figure


def write_labels(panel: Axes, classes: list[str], labels: np.ndarray, probability: np.ndarray) -> None:
    """A line for each label that is there or predicted, most probable first."""
    shown = [c for c in np.argsort(-probability) if labels[c] or probability[c] > 0.5]
    for line, c in enumerate(shown):
        kind = 'not there' if not labels[c] else 'found' if probability[c] > 0.5 else 'missed'
        place = {'xycoords': 'axes fraction', 'xytext': (0, -3 - LINE * line), 'textcoords': 'offset points'}
        text = f'{classes[c]} {probability[c]:.2f}'
        panel.annotate(text, (0, 0), **place, va='top', fontsize=7, color=COLORS[kind], parse_math=False)


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
