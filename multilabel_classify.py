"""MS-COCO multi-label classification.

    python multilabel_classify.py DIR --resume imagenet.pth.tar                  train from an ImageNet checkpoint
    python multilabel_classify.py DIR --output runs/coco --auto-resume           go on where an earlier call stopped
    python multilabel_classify.py DIR --evaluate --resume coco.pth.tar           precision, recall, F and mAP

DIR holds annotations/instances_{train,val}2014.json, train2014/ and val2014/; evaluation needs val only. The recipe of
the paper is the default: SGD 0.001 with momentum 0.9 and weight decay 5e-4, batches of 96 as if on 4 GPUs, 36 epochs,
the learning rate divided by 10 after 24 and 30.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
from torch.optim import SGD

import models
from data.coco import open_part, squashed
from data.image_folder import RandomCrop, check_same_classes
from utils.cli import (
    Parser,
    add_distributed_arguments,
    add_loop_arguments,
    add_recipe_arguments,
    add_run_arguments,
    natural,
)
from utils.device import on_gpu
from utils.errors import exit_cleanly
from utils.multilabel import MultiLabelCounts, MultiLabelScores, multilabel_loss
from utils.run import Files
from utils.schedules import milestones
from utils.trainer import Task, run


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('data', type=Path, metavar='DIR', help='folder with annotations/ and the images')
    parser.add_argument('--year', choices=['2014', '2017'], default='2014', help='of the folder and file names')
    parser.add_argument('--decay-epochs', type=natural, nargs='+', default=[24, 30], metavar='N',
        help='lr is divided by 10 after each')  # fmt: skip
    add_recipe_arguments(parser, list(models.classifiers))
    add_loop_arguments(parser)
    add_run_arguments(parser)
    add_distributed_arguments(parser)
    parser.set_defaults(lr=0.001, weight_decay=5e-4, batch_size=96, num_gpus=4, epochs=36)
    return parser


def main(args: Namespace) -> None:
    """Train, or with --evaluate only test, as the arguments say."""
    run(make_task, args)


def make_task(args: Namespace) -> Task:
    """Data, net, recipe and measures."""
    val_set = open_part(args.data, 'val', args.year, squashed(args.image_size))
    train_set = None if args.evaluate else open_part(args.data, 'train', args.year, RandomCrop(args.image_size))
    classes = val_set.table.classes
    if train_set:
        check_same_classes(args.data, train_set.table.classes, classes)
    torch.manual_seed(args.seed or 0)
    model = models.build_classifier(args.arch, len(classes))
    return Task(
        name='coco',
        files=Files(f'coco_{args.arch}_checkpoint.pth.tar'),
        classes=classes,
        model=model,
        optimizer=SGD(
            model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, fused=on_gpu(args.device)
        ),
        loss=multilabel_loss,
        learning_rate=lambda epoch: milestones(args.lr, epoch, args.decay_epochs),
        train_set=train_set,
        val_set=val_set,
        image_size=args.image_size,
        train_metrics=partial(MultiLabelCounts, classes=classes),
        val_metrics=partial(MultiLabelScores, classes=classes),
    )


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
