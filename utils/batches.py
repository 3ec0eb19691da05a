"""Which samples form which batch: samplers of lists of (epoch, index)."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from utils.accumulation import smallest_part

Batch = list[tuple[int, int]]


class TrainBatches(Sampler):
    """Batches shuffled anew from (seed, epoch), from any position inside an epoch on.

    Each of `world` processes gets its part of every batch, which it cuts for its `devices`. An epoch's last batch is
    left out if one of these would get fewer than `smallest` samples; by default, if it is not full.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        smallest: int | None = None,
        rank: int = 0,
        world: int = 1,
        devices: int = 1,
    ):
        self.samples, self.batch_size, self.seed, self.rank, self.world = samples, batch_size, seed, rank, world
        full, rest = divmod(samples, batch_size)
        self.batches = full + (smallest is not None and smallest_part(rest // world, devices) >= smallest)
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
            yield [(self.epoch, int(index)) for index in np.array_split(chosen, self.world)[self.rank]]


class EvalBatches(Sampler):
    """Batches of samples that may share one, in order: of each group's, such as the images of one size.

    `world` processes share the samples, none twice; each has `common` batches at least.
    """

    seed = 0

    def __init__(self, groups: Sequence[Sequence[int]], batch_size: int, rank: int = 0, world: int = 1):
        self.shared, parts = world > 1, [group[rank::world] for group in groups]
        self.batches = [
            [(0, int(index)) for index in part[start : start + batch_size]]
            for part in parts
            for start in range(0, len(part), batch_size)
        ]
        self.common = sum(-(-(len(group) // world) // batch_size) for group in groups)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)
