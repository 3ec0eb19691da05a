"""From a task's data, net, loss and metrics to a trained or evaluated net: what the scripts share."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.norm import statistics
from utils import checkpoint
from utils.accumulation import micro_batches, smallest_part
from utils.batches import EvalBatches, TrainBatches
from utils.checkpoint import Checkpoint
from utils.compute import Compute, Runner
from utils.cost import count_parameters, trains_on_one
from utils.data import DeviceLoader
from utils.distributed import average_over_processes, is_distributed, job, rank, together, world_size
from utils.errors import UserError
from utils.interrupt import StopRequest
from utils.learner import Learner
from utils.loop import evaluate, fit
from utils.metrics import Metrics
from utils.output import lock
from utils.reporting import Reporter
from utils.restore import Identity, load_for_evaluation
from utils.run import Files, Run


@dataclass(frozen=True)
class Task:
    """What tells one script from another."""

    name: str
    files: Files
    classes: list[str]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Any], Tensor]  # (outputs, targets) -> mean loss ()
    learning_rate: Callable[[float], float]  # of the epochs done, a part of one included
    train_metrics: Callable[[torch.device], Metrics]
    val_metrics: Callable[[torch.device], Metrics] | None = None
    train_set: Dataset | None = None  # None when only evaluating
    val_set: Dataset | None = None  # None when only training
    image_size: int | None = None  # of a classifier's training images
    batch_per_gpu: bool = False  # whether a process uses one GPU, and --batch-size is that of one of --num-gpus
    smallest_batch: int | None = None  # that a segmenter trains on, and an epoch may end with; None: a full one
    val_groups: Sequence[Sequence[int]] | None = None  # samples that can share a batch; None: all can
    wrap: Callable[[Runner], Runner] | None = None  # how the net is called when only evaluating
    reporter: type[Reporter] = Reporter
    context: AbstractContextManager = field(default_factory=nullcontext)  # in which it is carried out


def run(
    make_task: Callable[[Namespace], Task], args: Namespace, stop: StopRequest | None = None
) -> dict[str, Any] | None:
    """Carry out the task that the arguments describe, in one process or as one of a job; the results of an evaluation.

    `stop` is the entered StopRequest of a caller that has more to do afterwards; default: one for this task alone.
    """
    with job(args):
        with together():
            task = make_task(args)
        with task.context:
            return carry_out(task, args, stop)


def carry_out(task: Task, args: Namespace, stop: StopRequest | None = None) -> dict[str, Any] | None:
    """Train the task's net as the arguments say, or evaluate it: its results."""
    with together():
        compute = Compute(
            args.device,
            args.amp,
            not args.no_channels_last,
            args.compile,
            args.static_loss_scale,
            all_gpus=not task.batch_per_gpu,
        )
        devices = compute.devices * world_size()
        batch_size = args.batch_size * (args.num_gpus if task.batch_per_gpu else 1)
        micro_batch, accumulate = micro_batches(batch_size, args.num_gpus, devices, not args.evaluate)
        check_training(task, args, compute, micro_batch, batch_size)
        folder = nullcontext() if args.evaluate or rank() else lock(args.output)
    with together():  # when the folder is ours: its checkpoint stays as it is read
        found = find_checkpoint(args, task.files)
    learner = make_learner(task, args, compute, accumulate)
    reporter = task.reporter(args.print_freq, micro_batch)
    reporter.say(describe(task, learner, args.arch, micro_batch))
    with folder, nullcontext(stop) if stop else StopRequest() as stop:
        validate = make_validation(task, args, learner, micro_batch, reporter, stop) if task.val_set else None
        if args.evaluate:
            with together():
                load_for_evaluation(learner.model, found, Identity(task.name, args.arch, task.classes))
            return validate()
        train(task, args, learner, micro_batch, found, validate, reporter, stop)
        return None


def check_training(task: Task, args: Namespace, compute: Compute, micro_batch: int, batch_size: int) -> None:
    """UserError for what cannot be trained."""
    if args.sync_bn and compute.device.type != 'cuda':
        raise UserError('--sync-bn needs GPUs: torch has it for nothing else; --average-bn works everywhere')
    if args.evaluate:
        return
    if micro_batch % world_size():
        raise UserError(f'{world_size()} processes cannot share micro-batches of {micro_batch} equally (--batch-size)')
    check_part(task, args, smallest_part(micro_batch // world_size(), compute.devices))
    samples = len(task.train_set)
    if samples < (task.smallest_batch or batch_size) or not train_batches(task, micro_batch, compute, seed=0):
        flags = f'--batch-size {args.batch_size}' + f' on --num-gpus {args.num_gpus}' * task.batch_per_gpu
        raise UserError(f'{samples} training samples are fewer than one batch ({flags})')


def check_part(task: Task, args: Namespace, images: int) -> None:
    """UserError if a device gets fewer images at once than the net's batch norms take."""
    if args.sync_bn and is_distributed():  # normalised together
        return
    smallest = task.smallest_batch or 1
    if images < smallest:
        told = f'{args.arch} trains on {smallest} images per device, or with --freeze-bn'
        raise UserError(f'--batch-size {args.batch_size}: {told}')
    if images == 1 and task.image_size and not trains_on_one(task.model, task.image_size):
        cure = 'give a larger --image-size or --batch-size, or a smaller --num-gpus'
        raise UserError(f'{args.arch} cannot train on single images of {task.image_size} pixels: {cure}')


def make_validation(
    task: Task, args: Namespace, learner: Learner, micro_batch: int, reporter: Reporter, stop: StopRequest
) -> Callable[[], dict[str, Any]]:
    """A function that evaluates the net, as it then is, on the validation set.

    Processes whose running statistics are the same share the set; else each evaluates its own on all of it.
    """
    share = (rank(), world_size()) if args.evaluate or args.average_bn or args.sync_bn else (0, 1)
    groups = task.val_groups or [range(len(task.val_set))]
    batches = EvalBatches(groups, max(micro_batch // world_size(), 1), *share)
    loader = DeviceLoader(task.val_set, batches, learner.compute, args.workers)

    def validate() -> dict[str, Any]:
        if args.average_bn:
            average_over_processes(statistics(learner.model).values())
        return evaluate(learner, loader, task.val_metrics(learner.compute.device), reporter, stop)

    return validate


def train(
    task: Task,
    args: Namespace,
    learner: Learner,
    micro_batch: int,
    found: Checkpoint | None,
    validate: Callable[[], dict[str, Any]] | None,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Train in --output, from `found` if there is one, to --epochs epochs."""
    samples = len(task.train_set)
    plan = {'samples': samples, 'micro-batch': micro_batch, 'accumulate': learner.accumulate}
    identity = Identity(task.name, args.arch, task.classes)
    with together():
        run = Run(args.output, task.files, identity, learner, args.epochs, plan, args.save_steps, reporter, stop)
        run.begin(found, args.seed, args.start_epoch, vars(args))
    batches = train_batches(task, micro_batch, learner.compute, run.seed)
    loader = DeviceLoader(task.train_set, batches, learner.compute, args.workers)
    fit(learner, loader, lambda: task.train_metrics(learner.compute.device), validate, run)


def train_batches(task: Task, micro_batch: int, compute: Compute, seed: int) -> TrainBatches:
    """This process's part of the batches of every epoch."""
    places = rank(), world_size(), compute.devices
    return TrainBatches(len(task.train_set), micro_batch, seed, task.smallest_batch, *places)


def find_checkpoint(args: Namespace, files: Files) -> Checkpoint | None:
    """The run's own last checkpoint with --auto-resume if there is one, else what --resume names, if anything."""
    own = args.output / files.last
    path = own if args.auto_resume and own.exists() else args.resume
    if args.evaluate and path is None:
        raise UserError('--evaluate needs --resume PATH, the checkpoint to evaluate')
    return checkpoint.read(path) if path else None


def make_learner(task: Task, args: Namespace, compute: Compute, accumulate: int) -> Learner:
    """The net on its device, with its loss, optimizer and schedule."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(task.model) if args.sync_bn and is_distributed() else task.model
    model = compute.place(model)
    runner = None if args.evaluate else compute.runner(model, train=True)
    return Learner(model, runner, task.loss, compute, task.optimizer, task.learning_rate, accumulate, task.wrap)


def describe(task: Task, learner: Learner, arch: str, micro_batch: int) -> str:
    """What is about to run, in a line."""
    compute, millions = learner.compute, count_parameters(learner.model) / 1e6
    sets = {'training': task.train_set, 'test': task.val_set}
    images = ' and '.join(f'{len(images):,} {part}' for part, images in sets.items() if images)
    batches = f'{learner.accumulate} x {micro_batch} per update' if task.train_set else f'{micro_batch} at a time'
    faster = '; one process per GPU (torch.distributed.run, docker_classify.py) is faster' * (compute.devices > 1)
    net = f'{arch}: {millions:.2f} M parameters, {len(task.classes)} classes'
    return f'{net}; {images} images, {batches}; {compute}{faster}'
