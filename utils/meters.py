"""Running averages that stay on the device: nothing here waits for it until a number is asked for."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from utils.distributed import sum_over_processes, world_size

Item = TypeVar('Item')


def zero(device: torch.device) -> Tensor:
    """A sum to add to: float64, or float32 where the device (mps) has no more."""
    return torch.zeros((), dtype=torch.float32 if device.type == 'mps' else torch.float64, device=device)


class Average:
    """The last value and the running average, weighted by how many samples each value stands for."""

    def __init__(self, device: torch.device):
        self.last, self.sum, self.count = zero(device), zero(device), 0

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
        total = sum_over_processes(torch.stack([self.sum, torch.full_like(self.sum, self.count), self.last]))
        self.sum, self.last = total[0], total[2] / world_size()
        self.count = int(total[1])

    @property
    def value(self) -> float:
        return self.last.item()

    @property
    def average(self) -> float:
        return self.sum.item() / max(self.count, 1)

    def state_dict(self) -> dict[str, float]:
        return {'sum': self.sum.item(), 'count': self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.sum.fill_(state['sum'])
        self.count = int(state['count'])


class Clock:
    """Seconds per iteration, and how many of them went into waiting for data, as (last, average)."""

    def __init__(self):
        self.steps, self.time, self.data = 0, [0.0, 0.0], [0.0, 0.0]

    def measure(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Pass the batches on; `tick` ends each iteration."""
        self.start = time.perf_counter()
        for batch in batches:
            self.data[0] = time.perf_counter() - self.start
            yield batch

    def tick(self) -> None:
        now = time.perf_counter()
        self.time[0], self.start = now - self.start, now
        self.steps += 1
        for last_and_average in (self.time, self.data):
            last_and_average[1] += (last_and_average[0] - last_and_average[1]) / self.steps
