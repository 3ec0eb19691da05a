"""PASCAL VOC segmentation: DeepLabv3 on ResNeXt, DLA-Up on DLA.

    python segment.py --exp original                                             evaluate a released checkpoint
    python segment.py --exp my_exp --train --resume imagenet.pth.tar             train from an ImageNet checkpoint
    python segment.py --exp my_exp --train --auto-resume                         go on where an earlier call stopped
    python segment.py --exp original --scales 0.5,0.75,1,1.25,1.5,1.75 --flip    evaluate at several scales

Evaluates data/deeplab_ARCH_pascal_v3_EXP_epoch50.pth (epoch N: --epochs N), or what --resume names. The recipe of the
paper is the default: SGD 0.007, momentum 0.9, a poly schedule, batches of 16 crops of 513 pixels, 50 epochs.
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

import models
from data.voc import CLASSES, groups_of_one_size, open_voc, size_of
from data.voc_predictions import Predictions
from data.voc_transforms import PadToSize, RandomScaleCrop
from models.deeplab import DeepLab
from models.norm import freeze_bn_layers
from utils.checkpoint import CheckpointMeta
from utils.cli import (
    Parser,
    add_run_arguments,
    at_least_33,
    multiplier,
    nonnegative_float,
    nonnegative_int,
    positive_int,
    scales,
)
from utils.distributed import job, together
from utils.errors import exit_cleanly
from utils.logger import Reporter, SegmentationReporter
from utils.run import CheckpointNames
from utils.schedules import poly
from utils.segmentation import (
    MultiScale,
    RunningLoss,
    SegmentationScores,
    segmentation_loss,
    shared_segmentation_loss,
)
from utils.trainer import Trainer

MOMENTUM = 0.9
RECIPE = {'epochs': 50, 'batch_size': 16, 'base_lr': 0.007, 'last_mult': 1.0, 'crop_size': 513}


def make_parser() -> Parser:
    """Make the parser of the arguments, whose defaults are the recipe."""
    parser = Parser(__doc__)
    add_segmentation_arguments(parser)
    add_run_arguments(parser)
    parser.set_defaults(**RECIPE, output=Path('data'), num_gpus=None, start_epoch=0, average_bn=False)
    return parser


def add_segmentation_arguments(parser: Parser) -> None:
    """The reference's flags, also with dashes, and what is new for this task."""
    add, nets = parser.add_argument, list(models.segmenters)
    add('--exp', type=part_of_a_name, required=True, metavar='NAME', help='of the experiment, part of file names')
    add('--train', dest='evaluate', action='store_false', help='train; without it, evaluate')
    add('--dataset', choices=['pascal'], default='pascal', help='PASCAL VOC 2012')
    add('--data', type=Path, default=Path('data/VOCdevkit'), metavar='DIR', help='folder with VOC2012/')
    add('-a', '--arch', choices=nets, default='resnext50_elastic', metavar='ARCH', help=', '.join(nets))
    add('--epochs', type=positive_int, metavar='N', help='epochs in all')
    add('--batch-size', '-b', type=positive_int, metavar='N', help='images per update')
    add('--base-lr', type=nonnegative_float, metavar='X', help='initial learning rate')
    add('--last-mult', type=multiplier, metavar='X', help='factor of the learning rate for the head')
    add('--freeze-bn', action='store_true', help='leave batch norms as they are')
    add('--crop-size', type=at_least_33, metavar='PIXELS', help='side of training crops, and of test images at least')
    add('--no-checkpoint-activations', action='store_true',
        help='when training, keep activations instead of recomputing them: faster, with more memory')  # fmt: skip
    add('--scales', type=scales, default=[1.0], metavar='X,X,...', help='at which to test')
    add('--flip', action='store_true', help='test mirrored too')
    add('--overlay', action='store_true', help='write image | truth | prediction to overlays/')
    add('--gpu', type=nonnegative_int, metavar='N', help='the GPU to test on; default: all')
    add('--workers', '-j', type=nonnegative_int, default=4, metavar='N', help="loading; at most the machine's cores")
    add('--print-freq', '-p', type=positive_int, default=10, metavar='N', help='iterations between two lines')


def part_of_a_name(text: str) -> str:
    """Of a file in a folder named otherwise."""
    if not text or '/' in text or '\0' in text:
        raise ArgumentTypeError(f'{text!r} cannot be part of the name of a file')
    return text


def main(args: Namespace, reporter: Callable[[int, int], Reporter] = SegmentationReporter) -> dict[str, Any] | None:
    """Evaluate, or with --train train: the results of an evaluation."""
    with job(args):
        return evaluate(args, reporter) if args.evaluate else train(args, reporter)


def train(args: Namespace, reporter: Callable[[int, int], Reporter]) -> None:
    """Train a segmenter in --output."""
    with together():
        train_set = open_voc(args.data / 'VOC2012', 'train_aug.txt', RandomScaleCrop(args.crop_size))
        torch.manual_seed(args.seed or 0)
        recompute = not args.no_checkpoint_activations
        model = models.build_segmenter(args.arch, len(CLASSES), checkpoint_activations=recompute)
        if args.freeze_bn:
            freeze_bn_layers(model)
        meta = CheckpointMeta('voc', args.arch, CLASSES)
        trainer = Trainer(args, meta, checkpoint_names(args), model, shared_segmentation_loss, reporter)
    optimizer = SGD(parameter_groups(model, args.last_mult), args.base_lr, MOMENTUM, fused=trainer.on_gpu)
    schedule = partial(poly, args.base_lr, epochs=args.epochs)
    trainer.fit(optimizer, schedule, train_set, RunningLoss)


def evaluate(args: Namespace, reporter: Callable[[int, int], Reporter]) -> dict[str, Any]:
    """Evaluate a segmenter and write its predictions to --output: its results."""
    with together():
        scenes = open_voc(args.data / 'VOC2012', 'val.txt', PadToSize(args.crop_size))
        sizes = [size_of(path) for path in scenes.images]
        names = checkpoint_names(args)
        resumed = args.resume or args.output / names.numbered(args.epochs)
        device = args.device if args.gpu is None else f'cuda:{args.gpu}'
        args = Namespace(**{**vars(args), 'resume': resumed, 'device': device})
        model = models.build_segmenter(args.arch, len(CLASSES))
        trainer = Trainer(args, CheckpointMeta('voc', args.arch, CLASSES), names, model, segmentation_loss, reporter)
    with Predictions(args.output, scenes, sizes, args.overlay) as predictions:
        groups = groups_of_one_size([scenes.transform.padded_size(size) for size in sizes])
        metrics = partial(SegmentationScores, classes=CLASSES, images=len(scenes), keep=predictions.keep)
        several = args.flip or args.scales != [1]
        wrap = partial(MultiScale, scales=args.scales, flip=args.flip) if several else None
        return trainer.evaluate(scenes, metrics, groups, wrap)


def checkpoint_names(args: Namespace) -> CheckpointNames:
    """The names of the run's checkpoints."""
    stem = f'deeplab_{args.arch}_{args.dataset}_v3_{args.exp}_'
    return CheckpointNames(f'{stem}last.pth', stem=f'{stem}epoch')


def parameter_groups(model: nn.Module, last_mult: float) -> list[dict[str, Any]]:
    """The backbone's parameters, then the head's with `last_mult` times the learning rate, each in the net's order."""
    decay = 5e-4 if isinstance(model, DeepLab) else 1e-4
    backbone, heads = (
        list(nn.ModuleList(map(model.get_submodule, names)).parameters())
        for names in (model.backbone, model.head_names)
    )
    return [
        {'params': backbone, 'weight_decay': decay, 'lr_scale': 1.0},
        {'params': heads, 'weight_decay': decay, 'lr_scale': last_mult},
    ]


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
