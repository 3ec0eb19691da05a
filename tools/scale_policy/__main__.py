"""Which scale each block of an Elastic net prefers, picture by picture.

    python -m tools.scale_policy CHECKPOINT a.jpg b.jpg                    the policy of each picture, beside it
    python -m tools.scale_policy CHECKPOINT DIR --out policy.png           DIR/CLASS/*.jpg: per class, and the extremes

A block of stage 1 chooses between the sizes XL and L, of stage 2 between L and M, of stage 3 between M and S. It
prefers the branch that contributes more to its sum, by the mean absolute value at the block's resolution: a definition
of our own (tools/policies.py), the paper gives none. The picture goes to --out, all numbers into a JSON file
beside it.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.coco import squashed
from data.image_folder import ImageFolder, eval_transform
from tools.pictures import Pictures, add_test_arguments, make_loader
from tools.policies import Policies, is_elastic, measure
from tools.pretrained import add_arch_argument, open_classifier
from tools.results import add_out_argument, check_results, write_results
from tools.scale_policy.figure import draw_folder, draw_pictures
from utils.cli import Parser
from utils.device import Compute
from utils.errors import UserError, exit_cleanly

DEFINITION = (
    'A branch responds with the mean absolute value, over channels and pixels, of what it contributes to its '
    "block's sum at the block's resolution. share = full / (full + half), preferred is full from 0.5 on."
)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='of classify.py or multilabel_classify.py')
    parser.add_argument('images', type=Path, nargs='+', metavar='IMAGE', help='pictures, or a folder of class folders')
    add_arch_argument(parser)
    add_test_arguments(parser)
    add_out_argument(parser, 'scale_policy.png')
    return parser


def main(args: Namespace) -> None:
    """Measure, draw and note."""
    compute, (model, identity) = Compute(args.device), open_classifier(args.checkpoint, args.arch, args.image_size)
    pictures = open_pictures(args, (squashed if identity.task == 'coco' else eval_transform)(args.image_size))
    if not is_elastic(model):
        raise UserError(f'{args.checkpoint}: {identity.arch} has no elastic block, so nothing to choose')
    check_results(args.out)
    batches = (images for images, _ in make_loader(pictures, args, compute))
    policies = measure(compute.place(model), batches, args.image_size)
    noted = {
        'checkpoint': args.checkpoint,
        'arch': identity.arch,
        'image_size': args.image_size,
        'definition': DEFINITION,
        'blocks': [{'name': block.name, 'stage': block.stage, 'sizes': block.sizes} for block in policies.blocks],
    }
    title = f'{identity.arch} at {args.image_size} x {args.image_size}: the scale each block prefers'
    if isinstance(pictures, Pictures):
        figure, found = draw_pictures(title, policies, pictures), {'images': image_numbers(policies, pictures.paths)}
    else:
        found = folder_numbers(policies, pictures)
        figure = draw_folder(title, policies, pictures, found['classes'])
    write_results(figure, noted | found, args.out)


def open_pictures(args: Namespace, transform: Callable[[Image.Image], Tensor]) -> Pictures | ImageFolder:
    """The pictures of the files named, or of one folder by class; UserError for anything else."""
    folders = [path for path in args.images if path.is_dir()]
    if folders and len(args.images) > 1:
        raise UserError(f'{folders[0]} is a folder: give one folder, or pictures')
    for folder in folders:
        if (folder / 'train').is_dir() and (folder / 'val').is_dir():
            raise UserError(f'{folder} holds train and val, which are no classes: name one of the two')
    for path in args.images:
        if not path.exists():
            raise UserError(f'no picture and no folder {path}')
    return ImageFolder(folders[0], transform) if folders else Pictures(args.images, transform)


def image_numbers(policies: Policies, paths: Iterable[str | bytes | os.PathLike]) -> list[dict[str, Any]]:
    """Of each picture the sizes at every block, and the responses and shares at the elastic ones."""
    return [
        {
            'file': os.fsdecode(path),
            'share': rounded(shares.mean()),
            'sizes': ' '.join(policies.sizes(index)),
            'shares': rounded(shares),
            'full': rounded(responses[:, 0]),
            'half': rounded(responses[:, 1]),
        }
        for index, (path, shares, responses) in enumerate(zip(paths, policies.shares, policies.responses, strict=True))
    ]


def folder_numbers(policies: Policies, pictures: ImageFolder) -> dict[str, Any]:
    """The pictures with their classes, those with the highest and lowest mean share, and for each class how many it
    has, their mean share, and of which part of them each elastic block prefers the full size."""
    labels, classes = torch.tensor(pictures.labels), {}
    for label, name in enumerate(pictures.classes):
        member = labels == label
        classes[name] = {
            'images': int(member.sum()),
            'share': rounded(policies.shares[member].mean()),
            'prefer_full': rounded(policies.prefers_full[member].float().mean(0)),
        }
    images = image_numbers(policies, pictures.paths)
    for image, label in zip(images, labels, strict=True):
        image['class'] = pictures.classes[label]
    files = [images[index]['file'] for index in policies.by_share()]
    return {'classes': classes, 'most': files[:-11:-1], 'least': files[:10], 'images': images}


def rounded(values: Tensor) -> Any:
    """A number or a list of them, to five significant digits."""
    return [rounded(value) for value in values] if values.dim() else float(f'{values.item():.5g}')


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
