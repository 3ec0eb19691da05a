"""ImageNet classification in one process.

    python classify.py DIR                                       train on DIR/train/CLASS/*.jpg, test on DIR/val
    python classify.py DIR --auto-resume --output runs/a         the same, going on where an earlier call stopped
    python classify.py DIR --evaluate --resume model.pth.tar     the error on DIR/val

The recipe of the paper is the default: resnext50_elastic, SGD 0.1 with momentum 0.9 and weight decay 1e-4, batches
of 256 as if on 8 GPUs, 120 epochs, the learning rate divided by 10 every 30.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from data.image_folder import ImageFolder, RandomResizedCropFlip, check_same_classes, decode_image, eval_transform
from utils.checkpoint import CheckpointMeta
from utils.cli import (
    Parser,
    add_classifying_arguments,
    add_run_arguments,
    classifier_of,
    positive_int,
)
from utils.distributed import job, together
from utils.errors import exit_cleanly
from utils.logger import Reporter
from utils.metrics import TopKError
from utils.run import CheckpointNames
from utils.schedules import step_decay
from utils.trainer import Trainer

RECIPE = {
    'epochs': 120,
    'decay_epochs': 30,
    'batch_size': 256,
    'num_gpus': 8,
    'lr': 0.1,
    'momentum': 0.9,
    'weight_decay': 1e-4,
}


def make_parser(description: str = __doc__, batch: str = 'samples per update') -> Parser:
    """Make the parser of the arguments, whose defaults are the recipe."""
    parser = Parser(description)
    parser.add_argument('data', type=Path, metavar='DIR', help='folder with train/ and val/; to evaluate, with val/')
    add_classifying_arguments(parser, batch)
    parser.add_argument('--decay-epochs', type=positive_int, metavar='N', help='epochs between divisions of lr by 10')
    add_run_arguments(parser)
    parser.set_defaults(**RECIPE)
    return parser


def main(
    args: Namespace, last: str | None = None, reporter: Callable[[int, int], Reporter] = Reporter
) -> dict[str, float] | None:
    """Train, or with --evaluate only test: its results. `last` names the run's last checkpoint."""
    with job(args):
        with together():
            train_set, val_set = open_sets(args)
            torch.manual_seed(args.seed or 0)
            model = classifier_of(args, len(val_set.classes))
            last = last or f'{args.arch.replace("/", "_")}_checkpoint.pth.tar'
            names = CheckpointNames(last, best='model_best.pth.tar')
            meta = CheckpointMeta('imagenet', args.arch, val_set.classes)
            trainer = Trainer(args, meta, names, model, cross_entropy, reporter)
        if args.evaluate:
            return trainer.evaluate(val_set, TopKError)
        optimizer = SGD(
            model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, fused=trainer.on_gpu
        )
        schedule = partial(step_decay, args.lr, every=args.decay_epochs)
        trainer.fit(optimizer, schedule, train_set, TopKError, val_set, TopKError)
        return None


def open_sets(args: Namespace) -> tuple[ImageFolder | None, ImageFolder]:
    """DIR/train, augmented, unless only testing, and DIR/val."""
    val_set = ImageFolder(args.data / 'val', eval_transform(args.image_size))
    if args.evaluate:
        return None, val_set
    train_set = ImageFolder(args.data / 'train', RandomResizedCropFlip(args.image_size), decode_image)
    check_same_classes(args.data, train_set.classes, val_set.classes)
    return train_set, val_set


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
