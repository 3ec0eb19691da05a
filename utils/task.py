"""From a task's data, net, loss and metrics to a trained or evaluated net: what the scripts share."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from utils import checkpoint
from utils.accumulation import micro_batches
from utils.batches import EvalBatches, TrainBatches
from utils.checkpoint import Checkpoint
from utils.compute import Compute, Runner
from utils.cost import count_parameters
from utils.data import DeviceLoader
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
    smallest_batch: int | None = None  # that an epoch may end with; None: a full one
    val_groups: Sequence[Sequence[int]] | None = None  # samples that can share a batch; None: all can
    wrap: Callable[[Runner], Runner] | None = None  # how the net is called when only evaluating
    reporter: type[Reporter] = Reporter


def carry_out(task: Task, args: Namespace) -> None:
    """Train the task's net as the arguments say, or evaluate it."""
    compute = Compute(args.device, args.amp, not args.no_channels_last, args.compile)
    micro_batch, accumulate = micro_batches(args.batch_size, args.num_gpus, compute.devices, not args.evaluate)
    found = find_checkpoint(args, task.files)
    learner = make_learner(task, compute, accumulate)
    reporter = task.reporter(args.print_freq)
    reporter.say(describe(task, learner, args.arch, micro_batch))
    with StopRequest() as stop:
        validate = make_validation(task, learner, micro_batch, args.workers, reporter, stop) if task.val_set else None
        if args.evaluate:
            load_for_evaluation(learner.model, found, Identity(task.name, args.arch, task.classes))
            validate()
        else:
            train(task, args, learner, micro_batch, found, validate, reporter, stop)


def make_validation(
    task: Task, learner: Learner, batch_size: int, workers: int, reporter: Reporter, stop: StopRequest
) -> Callable[[], dict[str, Any]]:
    """A function that evaluates the net, as it then is, on the validation set."""
    batches = EvalBatches(task.val_groups or [range(len(task.val_set))], batch_size)
    loader = DeviceLoader(task.val_set, batches, learner.compute, workers)
    return lambda: evaluate(learner, loader, task.val_metrics(learner.compute.device), reporter, stop)


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
    if samples < (task.smallest_batch or args.batch_size):
        raise UserError(f'{samples} training samples are fewer than one batch (--batch-size {args.batch_size})')
    plan = {'samples': samples, 'micro-batch': micro_batch, 'accumulate': learner.accumulate}
    identity = Identity(task.name, args.arch, task.classes)
    run = Run(args.output, task.files, identity, learner, args.epochs, plan, args.save_steps, reporter, stop)
    run.begin(found, args.seed, args.start_epoch)
    run.log.start(vars(args), device=str(learner.compute), from_epoch=run.epoch, from_step=run.step)
    batches = TrainBatches(samples, micro_batch, run.seed, task.smallest_batch)
    loader = DeviceLoader(task.train_set, batches, learner.compute, args.workers)
    fit(learner, loader, lambda: task.train_metrics(learner.compute.device), validate, run)


def find_checkpoint(args: Namespace, files: Files) -> Checkpoint | None:
    """The run's own last checkpoint with --auto-resume if there is one, else what --resume names, if anything."""
    own = args.output / files.last
    path = own if args.auto_resume and own.exists() else args.resume
    if args.evaluate and path is None:
        raise UserError('--evaluate needs --resume PATH, the checkpoint to evaluate')
    return checkpoint.read(path) if path else None


def make_learner(task: Task, compute: Compute, accumulate: int) -> Learner:
    """The net on its device, with its loss, optimizer and schedule."""
    model = compute.place(task.model)
    runner = compute.runner(model)
    runner = task.wrap(runner) if task.wrap else runner
    return Learner(model, runner, task.loss, compute, task.optimizer, task.learning_rate, accumulate)


def describe(task: Task, learner: Learner, arch: str, micro_batch: int) -> str:
    """What is about to run, in a line."""
    compute, millions = learner.compute, count_parameters(learner.model) / 1e6
    sets = {'training': task.train_set, 'test': task.val_set}
    images = ' and '.join(f'{len(images):,} {part}' for part, images in sets.items() if images)
    batches = f'{learner.accumulate} x {micro_batch} per update' if task.train_set else f'{micro_batch} at a time'
    faster = '; docker_classify.py is faster on several GPUs' * (compute.devices > 1)
    net = f'{arch}: {millions:.2f} M parameters, {len(task.classes)} classes'
    return f'{net}; {images} images, {batches}; {compute}{faster}'
