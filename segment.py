"""PASCAL VOC segmentation: DeepLabv3 on ResNeXt, DLA-Up on DLA.

    python segment.py --exp original                                             evaluate a released checkpoint
    python segment.py --exp my_exp --train --resume imagenet.pth.tar             train from an ImageNet checkpoint
    python segment.py --exp my_exp --train --auto-resume                         go on where an earlier call stopped
    python segment.py --exp original --scales 0.5,0.75,1,1.25,1.5,1.75 --flip    evaluate at several scales

Evaluates data/deeplab_ARCH_pascal_v3_EXP_epoch50.pth (epoch N: --epochs N), or what --resume names. The recipe of the
paper is the default: SGD 0.007, momentum 0.9, a poly schedule, batches of 16 crops of 513 pixels, 50 epochs.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

import models
from data.voc import CLASSES, groups_of_one_size, open_scenes, size_of
from data.voc_predictions import Predictions
from data.voc_transforms import CentredScene, RandomScene
from models.deeplab import DeepLab
from models.norm import freeze_norms
from utils.cli import (
    Parser,
    add_distributed_arguments,
    add_run_arguments,
    multiplier,
    natural,
    nonnegative,
    pixels,
    positive,
    scales,
)
from utils.device import on_gpu
from utils.errors import exit_cleanly
from utils.logger import SegmentationReporter
from utils.run import Files, Numbered
from utils.schedules import poly
from utils.segmentation import (
    MultiScale,
    RunningLoss,
    SegmentationScores,
    Target,
    segmentation_loss,
    shared_segmentation_loss,
)
from utils.trainer import Task, run


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add_segmentation_arguments(parser)
    add_run_arguments(parser)
    add_distributed_arguments(parser)
    parser.set_defaults(output=Path('data'), num_gpus=None, start_epoch=0)
    return parser


def add_segmentation_arguments(parser: Parser) -> None:
    """The reference's flags, also with dashes, and what is new for this task."""
    add, nets = parser.add_argument, list(models.segmenters)
    add('--exp', type=part_of_a_name, required=True, metavar='NAME', help='of the experiment, part of file names')
    add('--train', dest='evaluate', action='store_false', help='train; without it, evaluate')
    add('--dataset', choices=['pascal'], default='pascal', help='PASCAL VOC 2012')
    add('--data', type=Path, default=Path('data/VOCdevkit'), metavar='DIR', help='folder with VOC2012/')
    add('-a', '--arch', choices=nets, default='resnext50_elastic', metavar='ARCH', help=', '.join(nets))
    add('--epochs', type=positive, default=50, metavar='N', help='epochs in all')
    add('--batch-size', '-b', type=positive, default=16, metavar='N', help='images per update')
    add('--base-lr', type=nonnegative, default=0.007, metavar='X', help='initial learning rate')
    add('--last-mult', type=multiplier, default=1.0, metavar='X', help="times that, for the head")
    add('--freeze-bn', action='store_true', help='leave batch norms as they are')
    add('--crop-size', type=pixels, default=513, metavar='PIXELS', help='of training and test')
    add('--no-checkpoint-activations', action='store_true',
        help='when training, keep activations instead of recomputing them: faster, with more memory')  # fmt: skip
    add('--scales', type=scales, default=[1.0], metavar='X,X,...', help='at which to test')
    add('--flip', action='store_true', help='test mirrored too')
    add('--overlay', action='store_true', help='write image | truth | prediction to overlays/')
    add('--gpu', type=natural, metavar='N', help='the GPU to test on; default: all')
    add('--workers', '-j', type=natural, default=4, metavar='N', help="loading; at most the machine's cores")
    add('--print-freq', '-p', type=positive, default=10, metavar='N', help='iterations between two lines')


def part_of_a_name(text: str) -> str:
    """Of a file in a folder named otherwise."""
    if not text or '/' in text or '\0' in text:
        raise ValueError(text)
    return text


def main(args: Namespace) -> None:
    """Evaluate, or with --train train, as the arguments say."""
    run(evaluation if args.evaluate else training, args)


def training(args: Namespace) -> Task:
    """Training a segmenter in --output."""
    train_set = open_scenes(args.data / 'VOC2012', 'train_aug.txt', RandomScene(args.crop_size))
    torch.manual_seed(args.seed or 0)
    model = models.build_segmenter(
        args.arch, len(CLASSES), checkpoint_activations=not args.no_checkpoint_activations
    )
    smallest = 1 if args.freeze_bn else model.smallest_batch
    if args.freeze_bn:
        freeze_norms(model)
    return make_task(args, model, shared_segmentation_loss, train_set=train_set, smallest_batch=smallest)


def evaluation(args: Namespace) -> Task:
    """Evaluating a segmenter, with its predictions written to --output."""
    scenes = open_scenes(args.data / 'VOC2012', 'val.txt', CentredScene(args.crop_size))
    sizes = [size_of(path) for path in scenes.images]
    if args.gpu is not None:
        args.device = f'cuda:{args.gpu}'
    args.resume = args.resume or args.output / checkpoints(args).numbered.name(args.epochs)
    model = models.build_segmenter(args.arch, len(CLASSES))
    predictions = Predictions(args.output, scenes, sizes, args.overlay)
    return make_task(
        args,
        model,
        segmentation_loss,
        val_set=scenes,
        val_groups=groups_of_one_size([scenes.transform.padded_size(size) for size in sizes]),
        val_metrics=partial(SegmentationScores, classes=CLASSES, images=len(scenes), keep=predictions.keep),
        wrap=partial(MultiScale, scales=args.scales, flip=args.flip) if args.flip or args.scales != [1] else None,
        context=predictions,
    )


def make_task(args: Namespace, model: nn.Module, loss: Callable[[Tensor, Target], Tensor], **own: Any) -> Task:
    """What training and evaluation have in common; `own` are other fields of Task."""
    return Task(
        name='voc',
        files=checkpoints(args),
        classes=CLASSES,
        model=model,
        optimizer=SGD(parameter_groups(model, args.last_mult), args.base_lr, 0.9, fused=on_gpu(args.device)),
        loss=loss,
        learning_rate=lambda epoch: poly(args.base_lr, epoch, args.epochs),
        train_metrics=RunningLoss,
        reporter=SegmentationReporter,
        **own,
    )


def checkpoints(args: Namespace) -> Files:
    """The reference's names: every tenth epoch and the last are kept."""
    name = f'deeplab_{args.arch}_pascal_v3_{args.exp}'
    return Files(f'{name}_last.pth', numbered=Numbered(f'{name}_epoch', every=10))


def parameter_groups(model: nn.Module, last_mult: float) -> list[dict[str, Any]]:
    """The backbone's parameters, then the head's with `last_mult` times the learning rate, each in the net's order."""
    decay = 5e-4 if isinstance(model, DeepLab) else 1e-4
    backbone, heads = (
        list(chain.from_iterable(model.get_submodule(name).parameters() for name in names))
        for names in (model.backbone, model.heads)
    )
    return [
        {'params': backbone, 'weight_decay': decay, 'lr_scale': 1.0},
        {'params': heads, 'weight_decay': decay, 'lr_scale': last_mult},
    ]


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
