"""Shows what a checkpoint's net sees in pictures, and exports it.

    python -m tools.predict CHECKPOINT IMAGE...                      ImageNet: the five most probable classes
                                                                     COCO: the labels with their probabilities
                                                                     VOC: NAME_overlay.jpg, image | prediction
    python -m tools.predict CHECKPOINT FOLDER --output overlays      all pictures below a folder
    python -m tools.predict CHECKPOINT --export net.pt2              for torch.export.load, and net.onnx

Checkpoints of the scripts here say their task and net; for those of 2019 --task and --arch do, where their tensors do
not tell. Classes are the checkpoint's own, or by their number those of ImageNet or COCO; ImageNet's folders get their
names. Exported nets take normalised images N x 3 x SIZE x SIZE, of any N and of the size of --image-size.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

import models
from data.class_names import readable_names
from data.coco import squashed
from data.image_folder import central_crop, open_image
from data.voc import groups_of_one_size, size_of
from data.voc_predictions import coloured
from data.voc_transforms import CentredScene
from tools.export import export, has_onnx
from tools.pretrained import TASKS, load_net
from utils import checkpoint
from utils.cli import Parser, add_device_argument, at_least_32, positive_int
from utils.device import Compute
from utils.errors import UserError, exit_cleanly
from utils.files import written_whole
from utils.loader import DeviceLoader, EvalBatches

SIZES = {'imagenet': 224, 'coco': 224, 'voc': 513}  # of the paper's tests
TOP = 5


class Pictures(Dataset):
    """Pairs of a transformed picture, uint8 3 or 4 x H x W, and its place."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(open_image(str(self.paths[index]))), index


class Intermixed(Parser):
    """Options may stand between the checkpoint and the pictures, where argparse before Python 3.13 refuses them."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Namespace | None = None) -> Namespace:
        """As argparse's."""
        return self.parse_intermixed_args(args, namespace)


def make_parser() -> Parser:
    parser, nets = Intermixed(__doc__), dict.fromkeys([*models.classifiers, *models.segmenters])
    add = parser.add_argument
    add('checkpoint', type=Path, metavar='CHECKPOINT', help='of one of the scripts, or a released one')
    add('images', type=Path, nargs='*', metavar='IMAGE', help='picture, or folder of pictures')
    add('--task', choices=list(TASKS), help='where the checkpoint does not say')
    add('-a', '--arch', choices=list(nets), metavar='ARCH', help=f'the same; {", ".join(nets)}')
    add('--image-size', type=at_least_32, metavar='PIXELS', help='as in training; default: 224, for VOC 513')
    add('-b', '--batch-size', type=positive_int, default=8, metavar='N', help='pictures at a time')
    add_device_argument(add)
    add('--output', type=Path, default=Path(), metavar='DIR', help='for the overlays')
    add('--export', type=Path, metavar='FILE.pt2', help='write the net as a program, and as ONNX where that is there')
    return parser


def main(args: Namespace) -> None:
    """Export and predict, as the arguments say."""
    if not args.images and args.export is None:
        raise UserError('nothing to do: name pictures, or --export FILE.pt2')
    paths = list_pictures(args.images)
    model, identity = load_net(checkpoint.read(args.checkpoint), args.task, args.arch)
    args.image_size = args.image_size or SIZES[identity.task]
    print(f'{identity.arch} for {identity.task}, {len(identity.classes)} classes, {args.image_size} pixels')
    if args.export is not None:
        print_export(model, args.export, args.image_size)
    if paths:
        show = {'imagenet': show_top, 'coco': show_labels, 'voc': show_overlays}[identity.task]
        show(args, model, readable_names(identity.task, identity.classes), paths)


def list_pictures(places: Sequence[Path]) -> list[Path]:
    """The pictures named, and all those below the folders named; UserError for what is not there."""
    paths = []
    for place in places:
        if not place.exists():
            raise UserError(f'no picture {place}')
        within = pictures_below(place) if place.is_dir() else [place]
        if not within:
            raise UserError(f'no picture in {place}')
        paths += within
    return paths


def pictures_below(folder: Path) -> list[Path]:
    """The files in the folder and those in it that are named as pictures."""
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())


def print_export(model: nn.Module, path: Path, size: int) -> None:
    """Export, and say what was written."""
    for file in export(model, path, size):
        print(f'exported: {file}')
    if not has_onnx():
        print('no ONNX file: that needs pip install onnx onnxscript')


def show_top(args: Namespace, model: nn.Module, classes: list[str], paths: list[Path]) -> None:
    """Print the most probable classes of each picture."""
    for index, logits in predict(args, model, Pictures(paths, central_crop(args.image_size))):
        scores = logits.softmax(0)
        places = scores.argsort(descending=True)[:TOP].tolist()
        print_block(paths[index], [(scores[place].item(), classes[place]) for place in places])


def show_labels(args: Namespace, model: nn.Module, classes: list[str], paths: list[Path]) -> None:
    """Print the labels of each picture, those more probable than not, the most probable first."""
    for index, logits in predict(args, model, Pictures(paths, squashed(args.image_size))):
        scores = logits.sigmoid()
        places = [place for place in scores.argsort(descending=True).tolist() if scores[place] > 0.5]
        print_block(paths[index], [(scores[place].item(), classes[place]) for place in places])


def show_overlays(args: Namespace, model: nn.Module, classes: list[str], paths: list[Path]) -> None:
    """Write each picture's overlay; print its path and which part of the picture each class covers."""
    centred, sizes = CentredScene(args.image_size), [size_of(path) for path in paths]
    pictures = Pictures(paths, lambda image: centred(image, Image.new('L', image.size))[0])
    groups = groups_of_one_size([centred.padded_size(size) for size in sizes])
    names, blocks = overlay_names(paths), {}
    with written_whole(*(args.output / name for name in names), sync=False) as files:
        for index, scores in predict(args, model, pictures, groups):
            (height, width), (top, left) = sizes[index], centred.corner(sizes[index])
            labels = scores.argmax(0)[top : top + height, left : left + width].numpy()
            overlay(paths[index], labels).save(files[index], format='JPEG')
            parts = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
            blocks[index] = [(parts[place], classes[place]) for place in np.argsort(-parts) if parts[place] > 0]
    for index in sorted(blocks):
        print_block(f'{paths[index]} -> {args.output / names[index]}', blocks[index])


def predict(
    args: Namespace, model: nn.Module, pictures: Pictures, groups: Sequence[Sequence[int]] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Place and outputs, C or C x H x W, of each picture; those of a group can share a batch, without groups all."""
    compute = Compute(args.device)
    net = compute.place(model).eval()
    batches = EvalBatches(groups or [range(len(pictures))], args.batch_size)
    for images, indices in DeviceLoader(pictures, batches, compute, workers=0):
        with torch.inference_mode():
            outputs = net(images).cpu()
        yield from zip(indices.tolist(), outputs, strict=True)


def print_block(title: object, rows: Sequence[tuple[float, str]]) -> None:
    """A picture, and a line for each of its classes."""
    print(f'\n{title}')
    for score, name in rows:
        print(f'{score:.4f} {name}')
    if not rows:
        print('no label')


def overlay_names(paths: Sequence[Path]) -> list[str]:
    """NAME_overlay.jpg for each picture, numbered where several have one name."""
    names, seen = [], Counter()
    for path in paths:
        seen[path.stem] += 1
        number = f'_{seen[path.stem]}' if seen[path.stem] > 1 else ''
        names.append(f'{path.stem}_overlay{number}.jpg')
    return names


def overlay(path: Path, labels: np.ndarray) -> Image.Image:
    """The picture beside itself with its objects, of labels H x W, in VOC's colours."""
    image = np.asarray(open_image(str(path)))
    return Image.fromarray(np.concatenate([image, coloured(image, labels)], 1))


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
