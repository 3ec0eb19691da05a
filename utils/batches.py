"""Which samples form which batch: samplers of lists of (epoch, index)."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

Batch = list[tuple[int, int]]


class TrainBatches(Sampler):
    """Batches shuffled anew from (seed, epoch), from any position inside an epoch on.

    An epoch's last batch is left out if it has fewer than `smallest` samples; by default, if it is not full.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, smallest: int | None = None):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        full, rest = divmod(samples, batch_size)
        self.batches = full + (0 < rest >= (smallest or batch_size))
        self.epoch = self.start = 0

    def seek(self, epoch: int, start: int = 0) -> None:
        """Let the next iteration be that of `epoch`, without its first `start` batches."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.samples)
        for batch in range(self.start, self.batches):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in chosen]


class EvalBatches(Sampler):
    """Batches of samples that may share one, in order: of each group's, such as the images of one size."""

    seed = 0

    def __init__(self, groups: Sequence[Sequence[int]], batch_size: int):
        self.batches = [
            [(0, int(index)) for index in group[start : start + batch_size]]
            for group in groups
            for start in range(0, len(group), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)
