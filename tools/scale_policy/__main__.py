"""Which scale each block of an Elastic net prefers, picture by picture.

    python -m tools.scale_policy CHECKPOINT a.jpg b.jpg                    the policy of each picture, beside it
    python -m tools.scale_policy CHECKPOINT DIR --out policy.png           DIR/CLASS/*.jpg: per class, and the extremes

A block of stage 1 chooses between the sizes XL and L, of stage 2 between L and M, of stage 3 between M and S. It
prefers the branch that contributes more to its sum, by the mean absolute value at the block's resolution: a definition
of our own (tools/scale_policy/policy.py), the paper gives none. The picture goes to --out, all numbers into a JSON file
beside it.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose

import models
from data.image_folder import PictureFolder, central_crop, open_folder, open_image
from tools.pretrained import open_classifier
from tools.scale_policy.figure import draw_folder, draw_pictures
from tools.scale_policy.policy import Policies, is_elastic, measure
from utils.cli import Parser, add_out_argument, add_test_arguments
from utils.device import Compute
from utils.errors import UserError, exit_cleanly
from utils.files import check_results, write_results
from utils.loader import DeviceLoader, EvalBatches, told_of_workers

DEFINITION = (
    'A branch responds with the mean absolute value, over channels and pixels, of what it contributes to its '
    "block's sum at the block's resolution. share = full / (full + half), preferred is full from 0.5 on."
)


class Pictures(Dataset):
    """Picture files in the given order, with PictureFolder's interface and no class."""

    def __init__(self, paths: list[Path], transform: Compose):
        self.index, self.transform = [(str(path), 0) for path in paths], transform

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.index[index]
        return self.transform(open_image(path)), label


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='of classify.py or multilabel_classify.py')
    parser.add_argument('images', type=Path, nargs='+', metavar='IMAGE', help='pictures, or a folder of class folders')
    parser.add_argument('-a', '--arch', choices=list(models.classifiers), metavar='ARCH',
                        help='where the checkpoint does not say')  # fmt: skip
    add_test_arguments(parser)
    add_out_argument(parser, 'scale_policy.png')
    return parser


def main(args: Namespace) -> None:
    """Measure, draw and note."""
    pictures = open_pictures(args.images, central_crop(args.image_size))
    arch, policies = policies_of(args, pictures)
    title = f'{arch} at {args.image_size} x {args.image_size}'
    noted = {'checkpoint': args.checkpoint, 'arch': arch, 'image_size': args.image_size, 'definition': DEFINITION}
    draw = draw_folder if isinstance(pictures, PictureFolder) else draw_pictures
    write_results(draw(title, policies, pictures), {**noted, **numbers(policies, pictures)}, args.out)


def open_pictures(paths: list[Path], transform: Compose) -> Pictures | PictureFolder:
    """The pictures of these files, or of one folder by class; UserError for anything else."""
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise UserError(f'{folders[0]} is a folder: give one folder, or pictures')
    for path in paths:
        if not path.exists():
            raise UserError(f'no picture and no folder {path}')
    return open_folder(folders[0], transform) if folders else Pictures(paths, transform)


@told_of_workers()
def policies_of(args: Namespace, pictures: Pictures | PictureFolder) -> tuple[str, Policies]:
    """The checkpoint's net and its policies for the pictures."""
    compute = Compute(args.device)
    model, identity = open_classifier(args.checkpoint, args.arch)
    if not is_elastic(model):
        raise UserError(f'{args.checkpoint}: {identity.arch} has no elastic block, so nothing to choose')
    check_results(args.out)
    loader = DeviceLoader(pictures, EvalBatches([range(len(pictures))], args.batch_size), compute, args.workers)
    return identity.arch, measure(compute.place(model), (images for images, _ in loader), args.image_size)


def numbers(policies: Policies, pictures: Pictures | PictureFolder) -> dict[str, Any]:
    """All of them for the JSON file; of a folder also by class, and its pictures by their mean share."""
    blocks = [{'name': block.name, 'stage': block.stage, 'sizes': block.sizes} for block in policies.blocks]
    images = [image_numbers(policies, index, path) for index, (path, _) in enumerate(pictures.index)]
    if not isinstance(pictures, PictureFolder):
        return {'blocks': blocks, 'images': images}
    for entry, label in zip(images, pictures.index.labels(), strict=True):
        entry['class'] = pictures.classes[label]
    order = policies.by_share()
    extremes = {'most': order[-10:][::-1], 'least': order[:10]}
    files = {name: [pictures.index[index][0] for index in indices] for name, indices in extremes.items()}
    return {'blocks': blocks, 'classes': class_numbers(policies, pictures), **files, 'images': images}


def image_numbers(policies: Policies, index: int, path: str) -> dict[str, Any]:
    """One picture's sizes at every block, and its responses and shares at the elastic ones."""
    shares, responses = policies.shares[index], policies.responses[index]
    return {
        'file': path,
        'share': rounded(shares.mean()),
        'sizes': ' '.join(policies.sizes(index)),
        'shares': rounded(shares),
        'full': rounded(responses[:, 0]),
        'half': rounded(responses[:, 1]),
    }


def class_numbers(policies: Policies, pictures: PictureFolder) -> dict[str, Any]:
    """How many pictures a class has, their mean share, and of how many each elastic block prefers the full size."""
    shares, full, targets = policies.shares, policies.prefers_full.float(), torch.tensor(pictures.index.labels())
    return {
        name: {
            'images': int((targets == label).sum()),
            'share': rounded(shares[targets == label].mean()),
            'prefer_full': rounded(full[targets == label].mean(0)),
        }
        for label, name in enumerate(pictures.classes)
    }


def rounded(values: Tensor) -> Any:
    """A number or a list of them, to five significant digits."""
    listed = values.tolist()
    return [float(f'{value:.5g}') for value in listed] if isinstance(listed, list) else float(f'{listed:.5g}')


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
