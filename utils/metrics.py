"""What the tasks measure: objects with update, progress, compute and a state to save, counted on the device."""

import copy
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from utils.distributed import all_reduce_sum, world_size


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device (mps) has no more."""
    return torch.float32 if device.type == 'mps' else torch.float64


class AverageMeter:
    """The last value and the running average, weighted by how many samples each value stands for."""

    def __init__(self, device: torch.device):
        zero = torch.zeros((), dtype=widest_float(device), device=device)
        self.last, self.sum, self.count = zero, zero.clone(), 0

    def update(self, value: Tensor, count: int = 1) -> None:
        """Count the mean `value` () of so many samples."""
        self.add(value.detach().to(self.sum.dtype) * count, count)

    def add(self, total: Tensor, count: int) -> None:
        """Count the sum () over so many samples; whole numbers add up exactly, however they are distributed."""
        total = total.to(self.sum.dtype)
        self.last = total / count
        self.sum += total
        self.count += count

    def reduce(self) -> None:
        """Average over the values of all processes; the last value becomes the mean of theirs."""
        total = all_reduce_sum(torch.stack([self.sum, torch.full_like(self.sum, self.count), self.last]))
        self.sum, self.last = total[0], total[2] / world_size()
        self.count = int(total[1])

    @property
    def value(self) -> float:
        """The last value."""
        return self.last.item()

    @property
    def average(self) -> float:
        """The running average; 0 of nothing."""
        return self.sum.item() / max(self.count, 1)

    def state_dict(self) -> dict[str, float]:
        """What a resumed average goes on from."""
        return {'sum': self.sum.item(), 'count': self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a saved state."""
        self.sum.fill_(state['sum'])
        self.count = int(state['count'])


class Clock:
    """Seconds per iteration, and how many of them went into waiting for data, as (last, average)."""

    def __init__(self):
        self.steps, self.time, self.data = 0, [0.0, 0.0], [0.0, 0.0]

    def measure(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Pass the batches on; `tick` ends each iteration."""
        self.start = time.perf_counter()
        for batch in batches:
            self.data[0] = time.perf_counter() - self.start
            yield batch

    def tick(self) -> None:
        """End an iteration."""
        now = time.perf_counter()
        self.time[0], self.start = now - self.start, now
        self.steps += 1
        for last_and_average in (self.time, self.data):
            last_and_average[1] += (last_and_average[0] - last_and_average[1]) / self.steps


class Metrics:
    """What a task measures: averages over the samples, and in subclasses counts, all of them kept on the device."""

    smooth_loss: float | None = None  # segmentation's: the metrics of the next epoch go on with it

    def __init__(self, device: torch.device, *names: str):
        self.averages = {name: AverageMeter(device) for name in ('loss', *names)}

    def update(self, loss: Tensor, outputs: Tensor, targets: Any) -> None:
        """Count a batch, of mean loss (), without waiting for the device."""
        self.averages['loss'].update(loss, len(outputs))

    def reduce(self) -> None:
        """Count what all processes counted."""
        for average in self.averages.values():
            average.reduce()

    def progress(self) -> str:
        """The end of a printed line: last values and averages so far."""
        raise NotImplementedError

    def compute(self) -> dict[str, Any]:
        """The results by name, for the log; the floats among them are drawn as curves."""
        return {name: average.average for name, average in self.averages.items()}

    def summary(self, results: dict[str, Any]) -> str:
        """What is printed of the results at the end of an evaluation."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a run resumed inside an epoch goes on counting from."""
        return {name: average.state_dict() for name, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for name, average in self.averages.items():
            average.load_state_dict(state[name])


def over_processes(metrics: Metrics) -> Metrics:
    """What all processes counted, in metrics that nobody goes on counting with."""
    total = copy.deepcopy(metrics)
    total.reduce()
    return total


class TopKError(Metrics):
    """Loss, top-1 and top-5 error in %, as printed and logged for ImageNet.

    With fewer than five classes the right one is always among the first five: Err@5 is 0.
    """

    def __init__(self, device: torch.device):
        super().__init__(device, 'err1', 'err5')

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss (), outputs N x C and class indices N."""
        super().update(loss, outputs, targets)
        hit = outputs.topk(min(5, outputs.shape[1])).indices == targets[:, None]
        self.averages['err1'].add(100 * (~hit[:, 0]).sum(), len(targets))
        self.averages['err5'].add(100 * (~hit.any(1)).sum(), len(targets))

    def progress(self) -> str:
        """Last value and average so far, in the reference's form."""
        loss, err1, err5 = self.averages.values()
        return (
            f'Loss {loss.value:.4f} ({loss.average:.4f})\tErr@1 {err1.value:.3f} ({err1.average:.3f})\t'
            f'Err@5 {err5.value:.3f} ({err5.average:.3f})'
        )

    def summary(self, results: dict[str, float]) -> str:
        """The line that ends an evaluation."""
        return f' * Err@1 {results["err1"]:.3f} Err@5 {results["err5"]:.3f}'
