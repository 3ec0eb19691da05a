"""Training and testing, the same for every script:

    main -> Trainer.fit -> train_epoch -> TrainingStep (utils/step.py)      main -> Trainer.evaluate -> evaluate

Nothing in the two loops waits for the device between printed lines, but segmentation's tests for the batch before.
"""

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from models.cost import count_parameters
from models.norm import batch_norms, bn_buffers, train_with_frozen_bn
from utils import checkpoint
from utils.checkpoint import Checkpoint, CheckpointMeta, load_for_evaluation
from utils.device import Compute, Runner, keep_freed_memory
from utils.distributed import (
    all_gather_object,
    all_reduce_mean,
    check_same,
    is_distributed,
    is_main_process,
    mean_of_results,
    rank,
    together,
    world_size,
)
from utils.errors import UserError
from utils.files import lock
from utils.loader import DeviceLoader, EvalBatchSampler, TrainBatchSampler, micro_batches, mixed_seed, smallest_part
from utils.logger import Reporter
from utils.metrics import Clock, Metrics, over_processes
from utils.run import CheckpointNames, Run, first_weights
from utils.signals import SignalHandler
from utils.step import Evaluator, Loss, TrainingStep

NewMetrics = Callable[[torch.device], Metrics]
Schedule = Callable[[float], float]  # epochs done, a part of one included -> learning rate


def train_epoch(
    training_step: TrainingStep,
    schedule: Schedule,
    loader: DeviceLoader,
    metrics: Metrics,
    run: Run,
    stop: SignalHandler,
) -> dict[str, Any]:
    """Train from where the run is to the end of the epoch; what `metrics` computes over all of the epoch.

    After each update and at the end stopping loses nothing: there Stopped is raised if a signal came, and the run saves
    if it is time. Micro-batches at the epoch's end that do not fill an update are run and discarded, as in the
    reference.
    """
    train_with_frozen_bn(training_step.model)
    training_step.zero_grad()
    clock, steps, reporter = Clock(), len(loader), run.reporter
    loader.batch_sampler.set_epoch(run.epoch, run.step)
    batches = reporter.bar(clock.measure(loader), steps, run.step, f'Epoch {run.epoch}')
    for step, (images, targets) in enumerate(batches, run.step):
        torch.manual_seed(mixed_seed(run.seed, run.epoch, step, rank()))  # of nets that draw, as for dropout
        outputs, loss = training_step(step, images, targets)
        run.finite.note(loss, step)
        metrics.update(loss, outputs, targets)
        learning_rate = schedule(run.epoch + step / steps)
        if training_step.completes_update(step):
            training_step.optimizer_step(learning_rate)
        clock.tick()
        if step % reporter.every == 0:
            run.check_finite()
            reporter.train_line(run.epoch, step, steps, clock, learning_rate, metrics)
        if training_step.completes_update(step) or step + 1 == steps:
            run.step = step + 1
            stop.check()
            run.save_if_due()
    run.check_finite()
    return over_processes(metrics).compute()


@torch.inference_mode()
def evaluate(
    evaluator: Evaluator, loss: Loss, loader: DeviceLoader, metrics: Metrics, reporter: Reporter, stop: SignalHandler
) -> dict[str, Any]:
    """What `metrics` computes over all batches of the loader. Raises Stopped after a signal.

    Processes that share the samples count together. Where each has them all, the mean of their results is reported.
    """
    keep_freed_memory(evaluator.compute.device)
    net, clock, steps = evaluator.load(), Clock(), len(loader)
    for step, (images, targets) in enumerate(reporter.bar(clock.measure(loader), steps, label='Test')):
        if step < loader.batch_sampler.common:
            stop.check()
        outputs = net(images)
        metrics.update(loss(outputs, targets), outputs, targets)
        clock.tick()
        if reporter.due(step, steps, loader.batch_sampler.common):
            reporter.test_line(step, steps, clock, metrics)
    if loader.batch_sampler.shared:
        metrics.reduce()
        results = metrics.compute()
    else:
        results = mean_of_results(all_gather_object(metrics.compute()))
    if math.isfinite(results['loss']):
        reporter.say(metrics.summary(results))
    else:
        reporter.say('=> the loss of this test is not finite: its numbers mean nothing')
    return results


class Trainer:
    """Trains a net, or tests it, on the device, in the batches and in the folder that the command line names.

    A batch is cut as if on --num-gpus GPUs. `names` are those of checkpoints, `meta` is what they say of the net.
    Raises UserError for a device that is not there and batches that cannot be cut.
    """

    def __init__(
        self,
        args: Namespace,
        meta: CheckpointMeta,
        names: CheckpointNames,
        model: nn.Module,
        loss: Loss,
        reporter: Callable[[int, int], Reporter] = Reporter,
    ):
        self.args, self.meta, self.names, self.loss = args, meta, names, loss
        layout, scale = not args.no_channels_last, args.static_loss_scale
        self.compute = Compute(args.device, args.amp, layout, args.compile, scale, all_gpus=not args.batch_per_gpu)
        if args.sync_bn and self.compute.device.type != 'cuda':
            raise UserError('--sync-bn needs GPUs: torch has it for nothing else; --average-bn works everywhere')
        self.batch_size = args.batch_size * (args.num_gpus if args.batch_per_gpu else 1)
        devices = self.compute.devices * world_size()
        self.micro_batch, self.accum_steps = micro_batches(
            self.batch_size, args.num_gpus, devices, training=not args.evaluate
        )
        self.reporter = reporter(args.print_freq, self.micro_batch)
        if args.sync_bn and is_distributed():
            strange = {type(norm) for norm in batch_norms(model)} - {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
            if strange:  # as timm's with activations, which would be lost
                names = ', '.join(kind.__name__ for kind in strange)
                raise UserError(f'--sync-bn knows only batch norms of PyTorch, and {meta.arch} has others: {names}')
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = self.compute.place(model)

    @property
    def on_gpu(self) -> bool:
        """Whether the net is on a GPU, where the optimizer's fused operations never wait, not even for a loss scale."""
        return self.compute.device.type == 'cuda'

    def evaluate(
        self,
        val_set: Dataset,
        metrics: NewMetrics,
        groups: Sequence[Sequence[int]] | None = None,
        wrap: Callable[[Runner], Runner] | None = None,
    ) -> dict[str, Any]:
        """Load the checkpoint that the command line names, and test it: the results.

        `groups` are the samples that can share a batch, by default all; `wrap` makes of the net what is tested.
        """
        with together():
            found = find_checkpoint(self.args, self.names)
            if found is not None:
                load_for_evaluation(self.model, found, self.meta)
            elif not self.args.pretrained:
                raise UserError('--evaluate needs --resume PATH, the checkpoint to evaluate')
        check_same(first_weights(self.model), 'processes test different nets: all must see the same --resume')
        self._describe(f'{len(val_set):,} test', f'{self.micro_batch} at a time')
        loader = self._eval_loader(val_set, groups, share=True)
        with SignalHandler() as stop:
            results = self._test(Evaluator(self.model, self.compute, wrap), loader, metrics, stop)
        with together():
            if not math.isfinite(results['loss']):
                raise UserError(f'{found.path if found else self.args.pretrained} gives a loss that is not finite')
        return results

    def fit(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        train_set: Dataset,
        train_metrics: NewMetrics,
        val_set: Dataset | None = None,
        val_metrics: NewMetrics | None = None,
    ) -> None:
        """Train to --epochs epochs, from the checkpoint that the command line names if it does, testing after each."""
        args, compute, reporter = self.args, self.compute, self.reporter
        with together():
            self._check(train_set)
            output_lock = lock(args.output) if is_main_process() else nullcontext()
        with output_lock, SignalHandler() as stop:
            with together():  # only once locked: no other run can replace the file that is read
                found = find_checkpoint(args, self.names)
            images = f'{len(train_set):,} training' + (f' and {len(val_set):,} test' if val_set is not None else '')
            self._describe(images, f'{self.accum_steps} x {self.micro_batch} per update')
            keep_freed_memory(compute.device)
            training_step = TrainingStep(self.model, self.loss, compute, optimizer, self.accum_steps)
            with together():
                plan = {'samples': len(train_set), 'micro-batch': self.micro_batch, 'accumulate': self.accum_steps}
                steps = len(self._train_batches(train_set, seed=0))
                run = Run(args, self.meta, self.names, training_step, plan, steps, reporter)
                run.begin(found, str(compute))
            run.check_same_start()
            train_loader = DeviceLoader(train_set, self._train_batches(train_set, run.seed), compute, args.workers)
            if val_set is not None:
                val_loader = self._eval_loader(val_set, None, share=args.average_bn or args.sync_bn)
                evaluator = Evaluator(self.model, compute)
            if run.epoch >= args.epochs:
                reporter.say(f'=> nothing to train: {run.epoch} epochs are done, and --epochs is {args.epochs}')
            with run.saved_when_stopped():
                while run.epoch < args.epochs:
                    metrics = run.resumed_metrics(train_metrics(compute.device))
                    results = {'train': train_epoch(training_step, schedule, train_loader, metrics, run, stop)}
                    if val_set is not None:
                        run.save(self.names.last)  # whatever goes wrong in the test
                        results['val'] = self._test(evaluator, val_loader, val_metrics, stop)
                    run.finish_epoch(schedule(run.epoch + (run.step - 1) / run.step), **results)

    def _test(
        self, evaluator: Evaluator, loader: DeviceLoader, metrics: NewMetrics, stop: SignalHandler
    ) -> dict[str, Any]:
        if self.args.average_bn:
            all_reduce_mean(bn_buffers(self.model).values())
        return evaluate(evaluator, self.loss, loader, metrics(self.compute.device), self.reporter, stop)

    def _eval_loader(self, val_set: Dataset, groups: Sequence[Sequence[int]] | None, share: bool) -> DeviceLoader:
        """Batches to test; with `share`, which needs the same running statistics everywhere, this process's part."""
        place = (rank(), world_size()) if share else (0, 1)
        batches = EvalBatchSampler(groups or [range(len(val_set))], max(self.micro_batch // world_size(), 1), *place)
        return DeviceLoader(val_set, batches, self.compute, self.args.workers)

    def _train_batches(self, train_set: Dataset, seed: int) -> TrainBatchSampler:
        place = rank(), world_size(), self.compute.devices
        return TrainBatchSampler(len(train_set), self.micro_batch, seed, self._smallest, *place)

    @property
    def _smallest(self) -> int | None:
        """The fewest images that a device may get in an epoch's last batch; None: it is dropped unless it is full."""
        smallest = getattr(self.model, 'smallest_batch', None)
        frozen = not any(norm.weight.requires_grad for norm in batch_norms(self.model))
        return 1 if smallest and frozen else smallest

    def _check(self, train_set: Dataset) -> None:
        """UserError for a set that cannot be trained on in these batches."""
        args, images, samples = self.args, self.micro_batch, len(train_set)
        if images % world_size():
            raise UserError(f'{world_size()} processes cannot share micro-batches of {images} equally (--batch-size)')
        part = smallest_part(images // world_size(), self.compute.devices)
        alone = not (args.sync_bn and is_distributed())  # else all processes' images are normalized together
        if alone and part < (self._smallest or 1):
            message = f'{args.arch} trains on {self._smallest} images per device, or with --freeze-bn'
            raise UserError(f'--batch-size {args.batch_size}: {message}')
        # Of fewer than 64 pixels nets may leave one value per channel, which batch norm cannot train on.
        if alone and part == 1 and self._smallest is None and args.image_size < 64:
            cure = 'give a larger --image-size or --batch-size, or a smaller --num-gpus'
            raise UserError(f'{args.arch} cannot train on single images of {args.image_size} pixels: {cure}')
        if samples < (self._smallest or self.batch_size) or not len(self._train_batches(train_set, seed=0)):
            flags = f'--batch-size {args.batch_size}' + f' on --num-gpus {args.num_gpus}' * args.batch_per_gpu
            raise UserError(f'{samples} training samples are fewer than one batch ({flags})')

    def _describe(self, images: str, batches: str) -> None:
        """Say what is about to run, in a line."""
        millions, compute = count_parameters(self.model) / 1e6, self.compute
        net = f'{self.meta.arch}: {millions:.2f} M parameters, {len(self.meta.classes)} classes'
        faster = '; one process per GPU (torch.distributed.run, docker_classify.py) is faster' * (compute.devices > 1)
        self.reporter.say(f'{net}; {images} images, {batches}; {compute}{faster}')


def find_checkpoint(args: Namespace, names: CheckpointNames) -> Checkpoint | None:
    """The run's own last checkpoint with --auto-resume if there is one, else what --resume names, if anything.

    What is to be evaluated is what --resume names, if it names anything.
    """
    own, named = args.output / names.last, args.evaluate and args.resume
    path = own if args.auto_resume and own.exists() and not named else args.resume
    return checkpoint.read(path) if path else None
