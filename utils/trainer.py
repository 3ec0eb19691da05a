"""From a task's data, net, loss and metrics to a trained or evaluated net: what the scripts share."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.cost import count_parameters, trains_on_one
from models.fused import fused
from models.norm import statistics, train_but_frozen_norms
from utils import checkpoint
from utils.checkpoint import Checkpoint, Identity, load_for_evaluation
from utils.device import Compute, Runner, keep_freed_memory
from utils.distributed import (
    average_over_processes,
    everyones,
    is_distributed,
    job,
    mean_of_results,
    rank,
    together,
    world_size,
)
from utils.errors import UserError
from utils.files import lock
from utils.loader import DeviceLoader, EvalBatches, TrainBatches, micro_batches, smallest_part, told_of_workers
from utils.logger import Reporter
from utils.metrics import Clock, Metrics
from utils.run import Files, Run
from utils.signals import StopRequest


@dataclass
class Learner:
    """A net with all that an update of its weights needs."""

    model: nn.Module  # bare: the state that checkpoints hold
    runner: Runner | None  # the same net as it is called in training: compiled, over several devices
    loss: Callable[[Tensor, Any], Tensor]  # (outputs, targets) -> mean loss ()
    compute: Compute
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[float], float]  # of the epochs done, a part of one included
    accumulate: int = 1  # micro-batches per update
    wrap: Callable[[Runner], Runner] | None = None  # how the net is called when it is tested

    def __post_init__(self):
        self.scaler = self.compute.scaler()
        self.tested: nn.Module | None = None

    def exchange(self, step: int) -> AbstractContextManager:
        """For forward and backward of the micro-batch numbered `step`: only the last of an update sums gradients over
        the processes."""
        alone = world_size() == 1 or self.completes_update(step)
        return nullcontext() if alone else self.runner.no_sync()

    def forward(self, images: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Outputs, in float32 at least, and mean loss of a micro-batch."""
        outputs = self.runner(images)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return outputs, self.loss(outputs, targets)

    def tester(self) -> Runner:
        """The net as it now is, fused and in the precision of the arithmetic: images -> outputs, in float32."""
        fresh = self.compute.place_for_test(fused(self.model))
        if self.tested is None:
            self.tested = fresh
            self.test_runner = self.compute.runner(fresh, train=False)
        self.tested.load_state_dict(fresh.state_dict())  # what was compiled stays

        def run(images: Tensor) -> Tensor:
            return self.test_runner(self.compute.of_any_number(images.to(self.compute.dtype))).float()

        return self.wrap(run) if self.wrap else run

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's share to the gradients of the update."""
        self.scaler.scale(loss / self.accumulate).backward()

    def update(self, learning_rate: float) -> None:
        """Let the optimizer use the gradients, and clear them. A group's `lr_scale` is a factor of its own."""
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate * group.get('lr_scale', 1)
        self.scaler.step(self.optimizer)
        self.scaler.update(self.compute.loss_scale)
        self.optimizer.zero_grad()

    def completes_update(self, step: int) -> bool:
        """Whether the micro-batch numbered `step` (from 0) is the last of an update."""
        return (step + 1) % self.accumulate == 0


def train_epoch(learner: Learner, loader: DeviceLoader, metrics: Metrics, run: Run) -> dict[str, Any]:
    """Train from where the run is to the end of the epoch; what `metrics` computes over all of the epoch.

    The run is told wherever stopping loses nothing: after each update and at the end. Micro-batches at the epoch's
    end that do not fill an update are run and discarded, as in the reference.
    """
    train_but_frozen_norms(learner.model)
    learner.optimizer.zero_grad()
    clock, steps, epoch, start = Clock(), len(loader), run.epoch, run.step
    loader.batches.seek(epoch, start)
    batches = run.reporter.bar(clock.measure(loader), steps, start, f'Epoch {epoch}')
    for step, (images, targets) in enumerate(batches, start):
        with learner.exchange(step):
            outputs, loss = learner.forward(images, targets)
            learner.backward(loss)
        run.finite.note(loss, epoch, step)
        metrics.update(loss, outputs.detach(), targets)
        learning_rate = learner.learning_rate(epoch + step / steps)
        if learner.completes_update(step):
            learner.update(learning_rate)
        clock.tick()
        if step % run.reporter.every == 0:
            run.check_finite()
            run.reporter.train_line(epoch, step, steps, clock, learning_rate, metrics)
        if learner.completes_update(step) or step + 1 == steps:
            run.reached(step + 1)
    run.check_finite()
    metrics.reduce()
    return metrics.compute()


@told_of_workers()
@torch.inference_mode()
def evaluate(
    learner: Learner, loader: DeviceLoader, metrics: Metrics, reporter: Reporter, stop: StopRequest
) -> dict[str, Any]:
    """What `metrics` computes over all batches of the loader. Raises Stopped after a signal.

    Processes that share the samples count together. Where each has them all, the mean of their results is reported.
    """
    keep_freed_memory(learner.compute.device)
    tester, clock, steps = learner.tester(), Clock(), len(loader)
    for step, (images, targets) in enumerate(reporter.bar(clock.measure(loader), steps, label='Test')):
        if step < loader.batches.common:
            stop.check()
        outputs = tester(images)
        metrics.update(learner.loss(outputs, targets), outputs, targets)
        clock.tick()
        if reporter.due(step, steps, loader.batches.common):
            reporter.test_line(step, steps, clock, metrics)
    if loader.batches.shared:
        metrics.reduce()
        results = metrics.compute()
    else:
        results = mean_of_results(everyones(metrics.compute()))
    reporter.say(metrics.summary(results))
    return results


@told_of_workers()
def fit(
    learner: Learner,
    loader: DeviceLoader,
    metrics: Callable[[], Metrics],
    validate: Callable[[], dict[str, Any]] | None,
    run: Run,
) -> None:
    """Train from where the run is to its end, validating after each epoch if at all; if told to stop, save first."""
    keep_freed_memory(learner.compute.device)
    if run.epoch >= run.epochs:
        run.reporter.say(f'=> nothing to train: {run.epoch} epochs are done, and --epochs is {run.epochs}')
    with run.saved_when_stopped():
        while run.epoch < run.epochs:
            trained = train_epoch(learner, loader, run.resumed_metrics(metrics()), run)
            run.finish_epoch(train=trained, **({'val': validate()} if validate else {}))


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
