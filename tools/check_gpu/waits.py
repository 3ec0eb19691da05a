"""Checks that nothing waits for the device where it need not, and that what does not wait is right all the same."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tools.check_gpu.nets import CLASSES, compute_of, filled, noise_set, recomputing, training_step_of
from tools.check_gpu.result import Result, skipped
from utils.loader import DeviceLoader, EvalBatchSampler, TrainBatchSampler
from utils.metrics import Metrics, TopKError
from utils.multilabel import MultiLabelCounts, MultiLabelScores, multilabel_loss
from utils.run import FiniteLoss
from utils.segmentation import RunningLoss, SegmentationScores, Target, shared_segmentation_loss
from utils.step import Evaluator


class Task(NamedTuple):
    """What a script trains and measures."""

    net: str
    loss: Callable[[Tensor, Any], Tensor]
    train_metrics: Callable[[torch.device], Metrics]
    val_metrics: Callable[[torch.device], Metrics]


COUNTS, SCORES = partial(MultiLabelCounts, classes=CLASSES), partial(MultiLabelScores, classes=CLASSES)
MASKS = partial(SegmentationScores, classes=CLASSES, images=8, keep=lambda masks, index: None)
TASKS = {
    'imagenet': Task('resnext50_elastic', cross_entropy, TopKError, TopKError),
    'coco': Task('dla60x_elastic', multilabel_loss, COUNTS, SCORES),
    'voc': Task('resnext50_elastic/seg', shared_segmentation_loss, RunningLoss, MASKS),
}


def without_waiting(device: torch.device, work: Callable[[], None], message: str) -> Result:
    """Do it, since first calls may wait, and once more where a call that waits is an error, as far as PyTorch knows."""
    work()
    if device.type != 'cuda':
        return skipped('on a CPU nothing waits')
    torch.cuda.set_sync_debug_mode('error')
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return Result(True, message, 'no call that waits')


def training_does_not_wait(
    device: torch.device, task: str, amp: str = 'off', net: str | None = None, side: int = 128
) -> Result:
    """Loading, forward, backward, update, losses and metrics, as in utils/trainer.py."""
    if amp == 'fp16' and device.type != 'cuda':
        return skipped('fp16 needs a GPU')
    name, loss, metrics_of, _ = TASKS[task]
    name = net or name
    model = filled(name, len(CLASSES), **recomputing(name)).train()
    training_step = training_step_of(model, compute_of(device, amp), loss)
    loader = DeviceLoader(noise_set(task, 8, side), TrainBatchSampler(8, 4, 0), training_step.compute, 0)
    metrics, finite = metrics_of(device), FiniteLoss(device)

    def epoch() -> None:
        for step, (images, targets) in enumerate(loader):
            outputs, loss = training_step(step, images, targets)
            finite.note(loss, step)
            metrics.update(loss, outputs, targets)
            training_step.optimizer_step(0.01)

    return without_waiting(device, epoch, f'{len(loader)} updates')


def testing_does_not_wait(
    device: torch.device, task: str, amp: str = 'off', net: str | None = None, side: int = 128
) -> Result:
    """Loading, forward, losses and metrics, as in utils/trainer.py."""
    name, loss, _, metrics_of = TASKS[task]
    compute = compute_of(device, amp)
    tester = Evaluator(compute.place(filled(net or name, len(CLASSES))), compute)
    loader = DeviceLoader(noise_set(task, 8, side), EvalBatchSampler([range(8)], 4), compute, 0)
    with torch.inference_mode():
        test, metrics = tester.load(), metrics_of(device)

        def epoch() -> None:
            for images, targets in loader:
                outputs = test(images)
                metrics.update(loss(outputs, targets), outputs, targets)

        return without_waiting(device, epoch, f'{len(loader)} batches')


def batches_arrive_whole(device: torch.device, count: int = 256, side: int = 224, workers: int = 2) -> Result:
    """Copied and normalized ahead on the loader's stream, batches are what they are without it; and later epochs take
    no memory of their own, as with a stream of their own they would."""
    dataset, compute = noise_set('imagenet', count, side), compute_of(device)
    loader = DeviceLoader(dataset, TrainBatchSampler(count, 32, 0), compute, workers)
    everything, wrong, reserved = dataset.images.to(device), torch.zeros((), dtype=torch.int64, device=device), []
    busy = torch.rand(2048, 2048, device=device) if device.type == 'cuda' else torch.rand(8, 8)
    for epoch in range(6):
        loader.batch_sampler.set_epoch(epoch)
        orders = [torch.tensor([index for _, index in batch]).to(device) for batch in loader.batch_sampler]
        for (images, _), order in zip(loader, orders, strict=True):
            for _ in range(10):  # so that this stream is behind the loader's
                busy = (busy @ busy).clamp(0, 1)
            wrong += (images != loader.normalize(everything[order])).sum()
            if epoch > 2:
                wrong.item()  # from here on memory does not depend on how far behind it is
        values = wrong.item()  # this stream catches up
        reserved.append(torch.cuda.memory_reserved(device) if device.type == 'cuda' else 0)
    more, batch = (reserved[5] - reserved[2]) / 2**20, images.nbytes / 2**20
    message = f'{values} values differ, {more:.0f} MiB more after three epochs more'
    return Result(values == 0 and more < 3 * batch, message, f'0, less than a batch ({batch:.0f} MiB) each')


def masks_come_late_and_whole(device: torch.device, side: int = 513) -> Result:
    """Those of a batch are handed on, as they were predicted, once the next one is under way."""
    kept: list[tuple[Tensor, list[int]]] = []
    scores = SegmentationScores(device, CLASSES, 3, lambda masks, index: kept.append((masks, index)))
    late = True
    for number in range(3):
        labels = torch.full((4, side, side), number, dtype=torch.uint8, device=device)
        outputs = (labels[:, None] == torch.arange(len(CLASSES), device=device)[:, None, None]).float()
        scores.update(torch.zeros((), device=device), outputs, Target(labels, torch.full((4,), number, device=device)))
        late &= len(kept) == number
    scores.compute()
    whole = [bool((masks == index[0]).all()) and index == [number] * 4 for number, (masks, index) in enumerate(kept)]
    return Result(late and whole == [True] * 3, f'late {late}, whole {whole}', 'late, three of them whole')
