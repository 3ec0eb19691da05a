"""Build PASCAL VOC's augmented training set from VOC 2012 and SBD (Hariharan et al. 2011).

    python data/prepare_voc.py data/VOCdevkit/VOC2012 benchmark_RELEASE/dataset

The first folder is VOC 2012's as it is unpacked, the second SBD's with cls/, train.txt and val.txt. Writes into the
first one SegmentationClassAug/NAME.png, a mask per image, VOC's own where it has one, and the lists list/train_aug.txt
(SBD's and VOC's training images without VOC's validation images: 10,582) and list/val.txt (VOC's: 1,449).
"""

import sys
from argparse import Namespace
from pathlib import Path
from shutil import copyfile

if not __package__:  # run as a file: the packages are in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from scipy.io import loadmat
from tqdm import tqdm

from data.palette import mask_image
from data.voc import CLASSES, size_of
from utils.cli import Parser
from utils.errors import UserError, exit_cleanly, named, reading
from utils.files import staged_folder

COMPLETE = {'train_aug': 10582, 'val': 1449}  # images of the full data sets, as the papers that use them count


def make_parser() -> Parser:
    """Make the parser of the arguments."""
    parser = Parser(__doc__)
    parser.add_argument('voc', type=Path, metavar='VOC2012', help='with JPEGImages/, SegmentationClass/, ImageSets/')
    parser.add_argument('sbd', type=Path, metavar='SBD', help='with cls/, train.txt and val.txt')
    return parser


def main(args: Namespace) -> None:
    """Write masks and lists, all of them or none."""
    lists = make_lists(args.voc, args.sbd)
    there = {path.stem for path in (args.voc / 'JPEGImages').glob('*.jpg')}
    missing = [f'{name}.jpg' for names in lists.values() for name in names if name not in there]
    if missing:
        raise UserError(f'{args.voc / "JPEGImages"} lacks {len(missing)} images: {named(missing)}')
    with staged_folder(args.voc / 'SegmentationClassAug') as masks, staged_folder(args.voc / 'list') as folder:
        names = [name for part in lists.values() for name in part]
        for name in tqdm(names, 'Masks', disable=None, leave=False):
            write_mask(args.voc, args.sbd, name, masks / f'{name}.png')
        for part, names in lists.items():
            lines = [f'/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n' for name in names]
            (folder / f'{part}.txt').write_text(''.join(lines))
    for part, names in lists.items():
        message = '' if len(names) == COMPLETE[part] else f', where the full sets have {COMPLETE[part]:,}'
        print(f'{args.voc}/list/{part}.txt: {len(names):,} images{message}')


def make_lists(voc: Path, sbd: Path) -> dict[str, list[str]]:
    """Read the names of the images of both parts, sorted."""
    own = {part: read_names(voc / 'ImageSets' / 'Segmentation' / f'{part}.txt') for part in ('train', 'val')}
    theirs = [read_names(sbd / f'{part}.txt') for part in ('train', 'val')]
    return {'train_aug': sorted(own['train'].union(*theirs) - own['val']), 'val': sorted(own['val'])}


def read_names(path: Path) -> set[str]:
    """Read a list of a name per line; UserError if there is no file or nothing in it."""
    if not path.is_file():
        raise UserError(f'no list {path}')
    with reading(f'cannot read {path}'):
        names = set(path.read_text(encoding='utf-8').split())
    if not names:
        raise UserError(f'{path} is empty')
    return names


def write_mask(voc: Path, sbd: Path, name: str, target: Path) -> None:
    """Write the mask of an image as a palette picture: VOC's own as it is, or SBD's."""
    own = voc / 'SegmentationClass' / f'{name}.png'
    if own.is_file():
        copyfile(own, target)
        return
    source = sbd / 'cls' / f'{name}.mat'
    labels = read_sbd(source)
    size = size_of(voc / 'JPEGImages' / f'{name}.jpg')
    if labels.shape != size:
        raise UserError(f'{source} is of {labels.shape} pixels, its image of {size}')
    mask_image(labels).save(target)


def read_sbd(path: Path) -> np.ndarray:
    """Read labels, uint8 H x W: GTcls.Segmentation of an .mat file; UserError that names it if it lacks that."""
    if not path.is_file():
        raise UserError(f'no mask of {path.stem}, neither in VOC nor {path}')
    with reading(f'{path} holds no GTcls.Segmentation'):
        labels = loadmat(path, variable_names=['GTcls'])['GTcls'][0, 0]['Segmentation']
    if labels.ndim != 2 or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise UserError(f'{path}: labels must be H x W, from 0 to {len(CLASSES) - 1}')
    return labels.astype(np.uint8)


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
