"""Draws a picture of the sample set: each class at growing scales, and a scene with polygons, boxes and mask.

    python data/sample.py SAMPLE_DIR
    python -m tools.sample_sheet SAMPLE_DIR OUT.png

The small pictures are cells of the scenes at one magnification: an object looks as large as it is.
"""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

from data.scenes import CELL
from utils.cli import Parser
from utils.errors import UserError, exit_cleanly
from utils.files import rasterised, written_whole

SIZES = np.geomspace(24, 112, 5)  # of the rows: longer side of an object's box, in pixels
TILE = 1.0  # side of a small picture, in inches
DOTS_PER_INCH = 100


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('sample', type=Path, metavar='SAMPLE_DIR', help='written by data/sample.py')
    parser.add_argument('out', type=Path, metavar='OUT.png', help='picture to write')
    return parser


def main(args: Namespace) -> None:
    """Read the annotations, draw, and write."""
    if not (args.sample / 'sample.json').is_file():
        raise UserError(f'{args.sample} is no folder that data/sample.py wrote')
    path = args.sample / 'coco' / 'annotations' / 'instances_train2014.json'
    sheet = rasterised(draw_sheet(args.sample, json.loads(path.read_text())))
    with written_whole(args.out) as (file,):
        sheet.save(file, format='PNG', optimize=True)


def draw_sheet(sample: Path, index: dict) -> Figure:
    """A column per class and a row per size; on the right a scene above its mask. `index` is a file of COCO's form."""
    classes, rows = index['categories'], len(SIZES)
    figure = Figure(
        figsize=(TILE * (len(classes) + rows / 2), TILE * (rows + 0.35)), layout='constrained', dpi=DOTS_PER_INCH
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    left, right = figure.subfigures(1, 2, width_ratios=[len(classes), rows / 2])
    for column, entry in zip(left.subplots(rows, len(classes)).T, classes, strict=True):
        draw_class(column, sample, [thing for thing in index['annotations'] if thing['category_id'] == entry['id']])
        column[0].set_title(entry['name'].replace('_', '\n'), fontsize=8)
    draw_scene(*right.subplots(2, 1), sample, most_varied(index['annotations']))
    return figure


def draw_class(panels: list[Axes], sample: Path, things: list[dict]) -> None:
    """Of the objects that lie in one cell, those nearest to SIZES, each in its cell."""
    things = [thing for thing in things if cell_of(thing)]
    if not things:
        raise UserError(f'{sample} has too few scenes for a picture of every class')
    sizes = np.array([max(thing['bbox'][2:]) for thing in things])
    for panel, size in zip(panels, SIZES, strict=True):
        thing = things[np.abs(np.log(sizes / size)).argmin()]
        show(panel, open_scene(sample, thing['image_id']).crop(cell_of(thing)))


def cell_of(thing: dict) -> tuple[int, int, int, int] | None:
    """The cell (left, top, right, bottom) of a scene's grid that an object lies in; None for a close-up."""
    x, y, width, height = thing['bbox']
    left, top = int(x // CELL * CELL), int(y // CELL * CELL)
    inside = x + width <= left + CELL and y + height <= top + CELL
    return (left, top, left + CELL, top + CELL) if inside else None


def most_varied(things: list[dict]) -> list[dict]:
    """The objects of that scene of four different classes whose sizes differ most."""
    scenes = [[thing for thing in things if thing['image_id'] == number] for number in {t['image_id'] for t in things}]
    full = [scene for scene in scenes if len({thing['category_id'] for thing in scene}) == 4]
    return max(full or scenes, key=lambda scene: np.ptp(np.log([thing['area'] for thing in scene])))


def draw_scene(picture: Axes, mask: Axes, sample: Path, things: list[dict]) -> None:
    """A scene with its objects' polygons and boxes, and below it its mask."""
    number = things[0]['image_id']
    show(picture, open_scene(sample, number))
    picture.set_title('polygons, boxes, mask', fontsize=8)
    for thing in things:
        x, y, width, height = thing['bbox']
        picture.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color='white', lw=0.8, ls='--'))
        corners = np.reshape(thing['segmentation'][0], (-1, 2)) - 0.5  # imshow's pixels are centred on whole numbers
        picture.add_patch(Polygon(corners, fill=False, color='yellow', lw=1.2))
    show(mask, Image.open(voc(sample) / 'SegmentationClassAug' / f'{number:06d}.png').convert('RGB'))


def show(panel: Axes, image: Image.Image) -> None:
    """An image without axes."""
    panel.imshow(image, interpolation='lanczos')
    panel.axis('off')


def open_scene(sample: Path, number: int) -> Image.Image:
    """The picture of a scene."""
    return Image.open(voc(sample) / 'JPEGImages' / f'{number:06d}.jpg')


def voc(sample: Path) -> Path:
    """The folder of the VOC layout."""
    return sample / 'VOCdevkit' / 'VOC2012'


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
