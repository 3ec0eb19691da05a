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
from PIL import Image

import models
from data.coco import MultiLabelImages, open_part, squashed
from tools.pretrained import open_classifier
from utils.cli import Parser, at_least_32, png, positive_int
from utils.device import Compute
from utils.errors import exit_cleanly
from utils.files import check_writable, write_figure
from utils.loader import DeviceLoader, EvalBatches

COLOURS = {'found': 'green', 'missed': 'grey', 'not there': 'red'}


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='of multilabel_classify.py')
    parser.add_argument('data', type=Path, metavar='DIR', help='folder with annotations/ and val2014/')
    parser.add_argument('out', type=png, metavar='OUT.png', help='picture to write')
    parser.add_argument('--images', type=positive_int, default=24, metavar='N', help='how many, spread over the set')
    parser.add_argument('--image-size', type=at_least_32, default=224, metavar='PIXELS', help='as in training')
    parser.add_argument('--year', choices=['2014', '2017'], default='2014', help='of the folder and file names')
    parser.add_argument('-a', '--arch', choices=list(models.classifiers), help='where the checkpoint does not say')
    return parser


def main(args: Namespace) -> None:
    """Predict and draw."""
    check_writable(args.out)
    data = open_part(args.data, 'val', args.year, squashed(args.image_size))
    chosen = np.linspace(0, len(data) - 1, min(args.images, len(data))).astype(int)
    probabilities = predict(args, data, chosen)
    draw_sheet(data, chosen, probabilities, args.out)


def predict(args: Namespace, data: MultiLabelImages, chosen: np.ndarray) -> np.ndarray:
    """The probability of each class in each of the chosen images, n x C."""
    compute = Compute()
    model = compute.place(open_classifier(args.checkpoint, args.arch, 'coco', data.table.classes)[0])
    loader = DeviceLoader(data, EvalBatches([chosen], 16), compute, workers=0)
    with torch.inference_mode():
        return torch.cat([model(images).sigmoid() for images, _ in loader]).cpu().numpy()


def draw_sheet(
    data: MultiLabelImages, chosen: np.ndarray, probabilities: np.ndarray, out: Path, columns: int = 6
) -> None:
    """A grid of the chosen images with their labels."""
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.9 * rows), layout='tight')
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.axis('off')
    for panel, index, probability in zip(panels[: len(chosen)], chosen, probabilities, strict=True):
        with Image.open(data.folder / str(data.table.files[index])) as image:
            panel.imshow(image.convert('RGB'))
        write_labels(panel, data.table.classes, data.table.present[index].any(0), probability)
    write_figure(figure, out, dots_per_inch=70)


def write_labels(panel: Axes, classes: list[str], labels: np.ndarray, probability: np.ndarray) -> None:
    """A line for each label that is there or predicted, most probable first."""
    line = 0
    for c in np.argsort(-probability):
        predicted = probability[c] > 0.5
        if predicted or labels[c]:
            kind = ('found' if predicted else 'missed') if labels[c] else 'not there'
            text = f'{classes[c]} {probability[c]:.2f}'
            place = {'transform': panel.transAxes, 'va': 'top', 'fontsize': 7}
            panel.text(0, -0.03 - 0.085 * line, text, color=COLOURS[kind], **place)
            line += 1


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
