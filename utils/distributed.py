"""Sums and collections over the processes of a job; in a single process nothing happens."""

import torch
from torch import Tensor, distributed


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's `value`, of one shape everywhere."""
    if is_distributed():
        value = value.clone()
        distributed.all_reduce(value)
    return value


def gather_over_processes(rows: Tensor) -> Tensor:
    """All processes' rows, N x ... with an N of their own, one process after the other."""
    if not is_distributed():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(max(counts))
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    everyones = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(everyones, padded)
    return torch.cat([part[: int(count)] for part, count in zip(everyones, counts, strict=True)])
