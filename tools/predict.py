"""Shows what a checkpoint's net sees in pictures, and exports it.

    python -m tools.predict CHECKPOINT IMAGE...                      ImageNet: the five most probable classes
                                                                     COCO: the labels with their probabilities
                                                                     VOC: NAME_overlay.jpg, image | prediction
    python -m tools.predict CHECKPOINT FOLDER --output overlays      all pictures below a folder
    python -m tools.predict CHECKPOINT --export net.pt2              for torch.export.load, and net.onnx

Checkpoints of the scripts here say their task and net; for those of 2019 --task and --arch do, where their tensors do
not tell. Classes are the checkpoint's own, or by their number those of ImageNet or COCO; ImageNet's folders get their
names. Exported nets take normalized images N x 3 x SIZE x SIZE, of any N and of the size of --image-size, which is 224
unless given, for VOC 513.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

import models
from data.class_names import readable_names
from data.coco import squashed
from data.image_folder import eval_transform, pil_loader
from data.voc import groups_of_one_size, size_of
from data.voc_predictions import colored
from data.voc_transforms import PadToSize
from tools.export import export, has_onnx
from tools.pictures import Pictures, add_test_arguments, outputs_of
from tools.pretrained import IMAGE_SIZES, TASKS, load_net
from utils import checkpoint
from utils.cli import Parser, check_image_size
from utils.errors import UserError, exit_cleanly, named
from utils.files import written_whole

TOP = 5


def make_parser() -> Parser:
    parser, nets = Parser(__doc__), dict.fromkeys([*models.classifiers, *models.segmenters])
    parser.parse_args = parser.parse_intermixed_args  # else no options between checkpoint and pictures: Python < 3.13
    add = parser.add_argument
    add('checkpoint', type=Path, metavar='CHECKPOINT', help='of one of the scripts, or a released one')
    add('images', type=Path, nargs='*', metavar='IMAGE', help='picture, or folder of pictures')
    add('--task', choices=list(TASKS), help='where the checkpoint does not say')
    add('-a', '--arch', choices=list(nets), metavar='ARCH', help=f'the same; {", ".join(nets)}')
    add_test_arguments(parser)
    parser.set_defaults(image_size=None, batch_size=8)
    add('--output', type=Path, default=Path(), metavar='DIR', help='for the overlays')
    add('--export', type=Path, metavar='FILE.pt2', help='write the net as a program, and as ONNX where that is there')
    return parser


def main(args: Namespace) -> None:
    """Export and predict, as the arguments say."""
    if not args.images and args.export is None:
        raise UserError('nothing to do: name pictures, or --export FILE.pt2')
    paths = list_pictures(args.images)
    model, identity = load_net(checkpoint.read(args.checkpoint), args.task, args.arch)
    args.task, args.image_size = identity.task, args.image_size or IMAGE_SIZES[identity.task]
    check_image_size(identity.arch, model, args.image_size)
    print(f'{identity.arch} for {args.task}, {len(identity.classes)} classes, {args.image_size} pixels')
    if args.export is not None:
        for file in export(model, args.export, args.image_size):
            print(f'exported: {file}')
        if not has_onnx():
            print('no ONNX file: that needs pip install onnx onnxscript')
    if paths:
        show = show_overlays if args.task == 'voc' else show_labels
        show(args, model, readable_names(args.task, identity.classes), paths)


def list_pictures(places: Sequence[Path]) -> list[Path]:
    """The pictures named, and all those below the folders named; UserError for what is not there."""
    paths = []
    for place in places:
        if not place.exists():
            raise UserError(f'no picture {place}')
        below = sorted(place.rglob('*')) if place.is_dir() else []
        found = [path for path in below if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()]
        if place.is_dir() and not found:
            raise UserError(f'no picture in {place}')
        paths += found or [place]
    return paths


def show_labels(args: Namespace, model: nn.Module, classes: list[str], paths: list[Path]) -> None:
    """Print each picture's labels and their probabilities, the most probable first.

    Of ImageNet the five most probable classes, of COCO those more probable than not.
    """
    single = args.task == 'imagenet'
    pictures = Pictures(paths, eval_transform(args.image_size) if single else squashed(args.image_size))
    for logits, index in outputs_of(model, pictures, args):
        scores = logits.softmax(0) if single else logits.sigmoid()
        places = scores.argsort(descending=True).tolist()
        shown = places[:TOP] if single else [place for place in places if scores[place] > 0.5]
        print_block(paths[index], [(scores[place].item(), classes[place]) for place in shown])


def show_overlays(args: Namespace, model: nn.Module, classes: list[str], paths: list[Path]) -> None:
    """Write each picture beside itself with its objects in VOC's colors; print which part of it each class covers."""
    centered, sizes = PadToSize(args.image_size), [size_of(path) for path in paths]
    groups = groups_of_one_size([centered.padded_size(size) for size in sizes])
    names, blocks = overlay_names(paths), {}
    lost = {(args.output / name).resolve() for name in names} & {path.resolve() for path in paths}
    if lost:
        raise UserError(f'{named(sorted(lost))} would be written over: give another --output')
    with written_whole(*(args.output / name for name in names), sync=False) as files:
        for scores, number in outputs_of(model, Pictures(paths, partial(padded, centered)), args, groups):
            index = int(number)
            (height, width), (top, left) = sizes[index], centered.corner(sizes[index])
            labels = scores.argmax(0)[top : top + height, left : left + width].numpy()
            image = np.asarray(pil_loader(str(paths[index])))
            beside = Image.fromarray(np.concatenate([image, colored(image, labels)], 1))
            beside.save(files[index], format='JPEG')
            parts = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
            blocks[index] = [(parts[place], classes[place]) for place in np.argsort(-parts) if parts[place] > 0]
    for index in sorted(blocks):
        print_block(f'{paths[index]} -> {args.output / names[index]}', blocks[index])


def padded(centered: PadToSize, image: Image.Image) -> Tensor:
    """The picture without a mask: uint8 4 x H x W."""
    return centered(image, Image.new('L', image.size))[0]


def overlay_names(paths: Sequence[Path]) -> list[str]:
    """NAME_overlay.jpg for each picture, numbered where several have one name."""
    names, seen = [], Counter()
    for path in paths:
        seen[path.stem] += 1
        number = f'_{seen[path.stem]}' if seen[path.stem] > 1 else ''
        names.append(f'{path.stem}_overlay{number}.jpg')
    return names


def print_block(title: object, rows: Sequence[tuple[float, str]]) -> None:
    """A picture, and a line for each of its classes."""
    print(f'\n{title}')
    for score, name in rows:
        print(f'{score:.4f} {name}')
    if not rows:
        print('no label')


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
