"""ImageNet classification in one process.

    python classify.py DIR                                       train on DIR/train/CLASS/*.jpg, test on DIR/val
    python classify.py DIR --auto-resume --output runs/a         the same, going on where an earlier call stopped
    python classify.py DIR --evaluate --resume model.pth.tar     the error on DIR/val

The recipe of the paper is the default: resnext50_elastic, SGD 0.1 with momentum 0.9 and weight decay 1e-4, batches
of 256 as if on 8 GPUs, 120 epochs, the learning rate divided by 10 every 30.
"""

from argparse import Namespace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD

import models
from data.image_folder import central_crop, open_folder, open_train_and_val
from utils.cli import (
    Parser,
    add_distributed_arguments,
    add_loop_arguments,
    add_recipe_arguments,
    add_run_arguments,
    positive,
)
from utils.device import on_gpu
from utils.errors import exit_cleanly
from utils.metrics import TopErrors
from utils.run import Best, Files
from utils.schedules import step_decay
from utils.trainer import Task, run


def make_parser(description: str = __doc__, batch: str = 'samples per update') -> Parser:
    parser = Parser(description)
    parser.add_argument('data', type=Path, metavar='DIR', help='folder with train/ and val/; to evaluate, with val/')
    add_recipe_arguments(parser, list(models.classifiers), batch)
    parser.add_argument('--decay-epochs', type=positive, default=30, metavar='N', help='lr is divided by 10 so often')
    add_loop_arguments(parser)
    add_run_arguments(parser)
    add_distributed_arguments(parser)
    return parser


def main(args: Namespace) -> None:
    """Train, or with --evaluate only test, as the arguments say."""
    run(make_task, args)


def make_task(args: Namespace) -> Task:
    """Data, net, recipe and measures."""
    if args.evaluate:
        train_set, val_set = None, open_folder(args.data / 'val', central_crop(args.image_size))
    else:
        train_set, val_set = open_train_and_val(args.data, args.image_size)
    torch.manual_seed(args.seed or 0)
    model = models.build_classifier(args.arch, len(val_set.classes))
    return Task(
        name='imagenet',
        files=Files(f'{args.arch}_checkpoint.pth.tar', Best('model_best.pth.tar', metric='err1', key='best_err1')),
        classes=val_set.classes,
        model=model,
        optimizer=SGD(
            model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, fused=on_gpu(args.device)
        ),
        loss=cross_entropy,
        learning_rate=lambda epoch: step_decay(args.lr, epoch, args.decay_epochs),
        train_set=train_set,
        val_set=val_set,
        image_size=args.image_size,
        train_metrics=TopErrors,
        val_metrics=TopErrors,
    )


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
