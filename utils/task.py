"""From a task's data, loss and metrics to a trained or evaluated net: what the classifying scripts share."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import models
from utils import checkpoint
from utils.accumulation import micro_batches
from utils.checkpoint import Checkpoint
from utils.compute import Compute
from utils.cost import count_parameters
from utils.data import DeviceLoader, EpochBatches
from utils.errors import UserError
from utils.interrupt import StopRequest
from utils.learner import Learner
from utils.loop import evaluate, fit
from utils.metrics import Metrics
from utils.reporting import Reporter
from utils.restore import Identity, load_for_evaluation
from utils.run import Files, Run


@dataclass(frozen=True)
class Task:
    """What tells one classifying script from another."""

    name: str
    files: Files
    train_set: Dataset | None  # None when only evaluating
    val_set: Dataset
    classes: list[str]
    loss: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> mean loss ()
    train_metrics: Callable[[torch.device], Metrics]
    val_metrics: Callable[[torch.device], Metrics]
    learning_rate: Callable[[int, int], float]  # of (epoch, micro-batch)


def carry_out(task: Task, args: Namespace) -> None:
    """Train the net of the arguments on the task, or evaluate it."""
    compute = Compute(args.device, args.amp, not args.no_channels_last, args.compile)
    micro_batch, accumulate = micro_batches(args.batch_size, args.num_gpus, compute.devices, not args.evaluate)
    found = find_checkpoint(args, task.files)
    learner = make_learner(task, args, compute, accumulate)
    reporter = Reporter(args.print_freq)
    reporter.say(describe(task, learner, args.arch, micro_batch))
    loader = DeviceLoader(task.val_set, EpochBatches(len(task.val_set), micro_batch), compute, args.workers)
    with StopRequest() as stop:

        def validate() -> dict[str, Any]:
            return evaluate(learner, loader, task.val_metrics(compute.device), reporter, stop)

        if args.evaluate:
            load_for_evaluation(learner.model, found, Identity(task.name, args.arch, task.classes))
            validate()
        else:
            train(task, args, learner, micro_batch, found, validate, reporter, stop)


def train(
    task: Task,
    args: Namespace,
    learner: Learner,
    micro_batch: int,
    found: Checkpoint | None,
    validate: Callable[[], dict[str, Any]],
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Train in --output, from `found` if there is one, to --epochs epochs."""
    samples = len(task.train_set)
    if samples < args.batch_size:
        raise UserError(f'{samples} training samples are fewer than one batch (--batch-size {args.batch_size})')
    plan = {'samples': samples, 'micro-batch': micro_batch, 'accumulate': learner.accumulate}
    identity = Identity(task.name, args.arch, task.classes)
    run = Run(args.output, task.files, identity, learner, plan, args.save_steps, reporter, stop)
    run.begin(found, args.seed, args.start_epoch)
    run.log.start(vars(args), device=str(learner.compute), from_epoch=run.epoch, from_step=run.step)
    batches = EpochBatches(samples, micro_batch, run.seed, shuffle=True, drop_last=True)
    loader = DeviceLoader(task.train_set, batches, learner.compute, args.workers)
    fit(learner, loader, lambda: task.train_metrics(learner.compute.device), validate, run, args.epochs)


def find_checkpoint(args: Namespace, files: Files) -> Checkpoint | None:
    """The run's own last checkpoint with --auto-resume if there is one, else what --resume names, if anything."""
    own = args.output / files.last
    path = own if args.auto_resume and own.exists() else args.resume
    if args.evaluate and path is None:
        raise UserError('--evaluate needs --resume PATH, the checkpoint to evaluate')
    return checkpoint.read(path) if path else None


def make_learner(task: Task, args: Namespace, compute: Compute, accumulate: int) -> Learner:
    """The net, initialised from the seed, with the optimizer of the recipe: SGD, weight decay on everything."""
    torch.manual_seed(args.seed or 0)
    model = compute.place(models.build_classifier(args.arch, len(task.classes)))
    optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay)
    return Learner(model, compute.runner(model), task.loss, compute, optimizer, task.learning_rate, accumulate)


def describe(task: Task, learner: Learner, arch: str, micro_batch: int) -> str:
    """What is about to run, in a line."""
    compute, millions = learner.compute, count_parameters(learner.model) / 1e6
    if task.train_set:
        images = f'{len(task.train_set):,} training and {len(task.val_set):,} test images'
        batches = f'{learner.accumulate} x {micro_batch} per update'
    else:
        images, batches = f'{len(task.val_set):,} test images', f'{micro_batch} at a time'
    faster = '; docker_classify.py is faster on several GPUs' * (compute.devices > 1)
    return f'{arch}: {millions:.2f} M parameters, {len(task.classes)} classes; {images}, {batches}; {compute}{faster}'
