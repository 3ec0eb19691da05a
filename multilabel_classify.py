"""MS-COCO multi-label classification.

    python multilabel_classify.py DIR --resume imagenet.pth.tar                  train from an ImageNet checkpoint
    python multilabel_classify.py DIR --output runs/coco --auto-resume           go on where an earlier call stopped
    python multilabel_classify.py DIR --evaluate --resume coco.pth.tar           precision, recall, F and mAP

DIR holds annotations/instances_{train,val}2014.json, train2014/ and val2014/; evaluation needs val only. The recipe of
the paper is the default: SGD 0.001 with momentum 0.9 and weight decay 5e-4, batches of 96 as if on 4 GPUs, 36 epochs,
the learning rate divided by 10 after 24 and 30.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD

from data.coco import MultiLabelImages, open_part, squashed
from data.image_folder import RandomResizedCropFlip, check_same_classes
from utils.checkpoint import CheckpointMeta
from utils.cli import (
    Parser,
    add_classifying_arguments,
    add_run_arguments,
    classifier_of,
    nonnegative_int,
)
from utils.distributed import job, together
from utils.errors import exit_cleanly
from utils.logger import Reporter
from utils.multilabel import MultiLabelCounts, MultiLabelScores, multilabel_loss
from utils.run import CheckpointNames
from utils.schedules import milestones
from utils.trainer import Trainer

RECIPE = {
    'epochs': 36,
    'decay_epochs': [24, 30],
    'batch_size': 96,
    'num_gpus': 4,
    'lr': 0.001,
    'momentum': 0.9,
    'weight_decay': 5e-4,
}


def make_parser() -> Parser:
    """Make the parser of the arguments, whose defaults are the recipe."""
    parser = Parser(__doc__)
    parser.add_argument('data', type=Path, metavar='DIR', help='folder with annotations/ and the images')
    parser.add_argument('--year', choices=['2014', '2017'], default='2014', help='of the folder and file names')
    parser.add_argument('--decay-epochs', type=nonnegative_int, nargs='+', metavar='N',
        help='epochs after each of which lr is divided by 10')  # fmt: skip
    add_classifying_arguments(parser)
    add_run_arguments(parser)
    parser.set_defaults(**RECIPE)
    return parser


def main(args: Namespace, reporter: Callable[[int, int], Reporter] = Reporter) -> dict[str, Any] | None:
    """Train, or with --evaluate only test: its results."""
    with job(args):
        with together():
            train_set, val_set = open_sets(args)
            classes = val_set.classes
            torch.manual_seed(args.seed or 0)
            model = classifier_of(args, len(classes))
            names = CheckpointNames(f'coco_{args.arch.replace("/", "_")}_checkpoint.pth.tar')
            trainer = Trainer(args, CheckpointMeta('coco', args.arch, classes), names, model, multilabel_loss, reporter)
        val_metrics = partial(MultiLabelScores, classes=classes)
        if args.evaluate:
            return trainer.evaluate(val_set, val_metrics)
        optimizer = SGD(
            model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, fused=trainer.on_gpu
        )
        schedule = partial(milestones, args.lr, at=args.decay_epochs)
        train_metrics = partial(MultiLabelCounts, classes=classes)
        trainer.fit(optimizer, schedule, train_set, train_metrics, val_set, val_metrics)
        return None


def open_sets(args: Namespace) -> tuple[MultiLabelImages | None, MultiLabelImages]:
    """Training images, augmented, unless only testing, and validation images; UserError if their classes differ."""
    val_set = open_part(args.data, 'val', args.year, squashed(args.image_size))
    if args.evaluate:
        return None, val_set
    train_set = open_part(args.data, 'train', args.year, RandomResizedCropFlip(args.image_size))
    check_same_classes(args.data, train_set.classes, val_set.classes)
    return train_set, val_set


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
