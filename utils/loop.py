"""The one training loop and the one evaluation loop. Nothing in them waits for the device between printed lines."""

from collections.abc import Callable
from typing import Any

import torch

from models.norm import train_but_frozen_norms
from utils.data import DeviceLoader, told_of_workers
from utils.distributed import everyones, mean_of_results
from utils.interrupt import StopRequest
from utils.learner import Learner
from utils.memory import keep_freed_memory
from utils.meters import Clock
from utils.metrics import Metrics
from utils.reporting import Reporter
from utils.run import Run


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
