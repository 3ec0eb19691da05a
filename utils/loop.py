"""The one training loop and the one evaluation loop. Nothing in them waits for the device between printed lines."""

from collections.abc import Callable
from typing import Any

import torch

from utils.data import DeviceLoader
from utils.interrupt import StopRequest
from utils.learner import Learner
from utils.meters import Clock
from utils.metrics import Metrics
from utils.reporting import Reporter
from utils.run import Run


def train_epoch(learner: Learner, loader: DeviceLoader, metrics: Metrics, run: Run) -> dict[str, Any]:
    """Train from where the run is to the end of the epoch; what `metrics` computes over all of the epoch.

    The run is told wherever stopping loses nothing: after each update and at the end. Micro-batches at the epoch's
    end that do not fill an update are run and discarded, as in the reference.
    """
    learner.model.train()
    learner.optimizer.zero_grad()
    clock, steps, epoch, start = Clock(), len(loader), run.epoch, run.step
    batches = run.reporter.bar(clock.measure(loader.epoch(epoch, start)), steps, start, f'Epoch {epoch}')
    for step, (images, targets) in enumerate(batches, start):
        outputs, loss = learner.forward(images, targets)
        learner.backward(loss)
        run.finite.note(loss, epoch, step)
        metrics.update(loss, outputs.detach(), targets)
        if learner.completes_update(step):
            learner.update(learner.learning_rate(epoch, step))
        clock.tick()
        if step % run.reporter.every == 0:
            run.check_finite()
            run.reporter.train_line(epoch, step, steps, clock, metrics)
        if learner.completes_update(step) or step + 1 == steps:
            run.reached(step + 1)
    run.check_finite()
    return metrics.compute()


@torch.inference_mode()
def evaluate(
    learner: Learner, loader: DeviceLoader, metrics: Metrics, reporter: Reporter, stop: StopRequest
) -> dict[str, Any]:
    """What `metrics` computes over all batches of the loader. Raises Stopped after a signal."""
    learner.model.eval()
    clock, steps = Clock(), len(loader)
    for step, (images, targets) in enumerate(reporter.bar(clock.measure(loader.epoch()), steps, label='Test')):
        stop.check()
        outputs, loss = learner.forward(images, targets)
        metrics.update(loss, outputs, targets)
        clock.tick()
        if step % reporter.every == 0:
            reporter.test_line(step, steps, clock, metrics)
    metrics.reduce()
    reporter.say(metrics.summary())
    return metrics.compute()


def fit(
    learner: Learner,
    loader: DeviceLoader,
    metrics: Callable[[], Metrics],
    validate: Callable[[], dict[str, Any]],
    run: Run,
    epochs: int,
) -> None:
    """Train from where the run is until `epochs` are done, validating after each; if told to stop, save first."""
    with run.saved_when_stopped():
        while run.epoch < epochs:
            trained = train_epoch(learner, loader, run.resumed_metrics(metrics()), run)
            run.finish_epoch(trained, validate())
