"""Loading: seeded augmentation, and batches on the device.

Augmentation is drawn from (seed, epoch, sample), so neither the number of workers nor an interruption changes it.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from utils.device import Compute
from utils.distributed import is_distributed
from utils.errors import UserError
from utils.signals import worker_init_fn


def micro_batches(batch_size: int, num_gpus: int | None, devices: int, training: bool) -> tuple[int, int]:
    """The size of a micro-batch and how many of them make an update, on `devices` devices at once.

    The reference trained on 8 GPUs and normalized batches per GPU; the same statistics on fewer devices need
    micro-batches of the same size: batch_size / k with k = num_gpus / devices, where num_gpus None means `devices`.
    Raises UserError when training with numbers that do not divide; a test only takes the size.
    """
    num_gpus = num_gpus or devices
    if training and num_gpus % devices:
        there = 'processes' if is_distributed() else 'devices that are visible'
        raise UserError(f'--num-gpus {num_gpus} is no multiple of the {devices} {there}')
    count = max(num_gpus // devices, 1)
    if training and batch_size % count:
        raise UserError(f'--batch-size {batch_size} cannot be cut into {count} equal micro-batches (--num-gpus)')
    return max(batch_size // count, 1), count


def smallest_part(images: int, devices: int) -> int:
    """Of how many images the smallest batch is when DataParallel cuts one for so many devices; of none, none."""
    part = -(-images // devices)
    return images % part or part if images else 0


Batch = list[tuple[int, int]]


class TrainBatchSampler(Sampler):
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

    def set_epoch(self, epoch: int, start: int = 0) -> None:
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


class EvalBatchSampler(Sampler):
    """Batches of one group of samples after the other, in order; only samples of a group, as of one size, share one.

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


# ImageNet's, of RGB in 0..1, as in torchvision's released models and the reference.
MEAN = 0.485, 0.456, 0.406
STD = 0.229, 0.224, 0.225


def mixed_seed(*numbers: int) -> int:
    """A seed for torch that depends on all the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class SeededDataset(Dataset):
    """A map-style dataset asked for (epoch, index), whose random numbers depend on nothing but these and the seed."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, index))
            try:
                return self.dataset[index]
            except UserError as error:  # as a value it crosses the process boundary without a worker's traceback
                return error


class DeviceLoader:
    """Batches of a dataset of (uint8 image, target) pairs, on the device, the images normalized there."""

    def __init__(
        self, dataset: Dataset, batch_sampler: TrainBatchSampler | EvalBatchSampler, compute: Compute, workers: int
    ):
        self.batch_sampler, self.compute = batch_sampler, compute
        # torch.distributed.run tells how many processes share this machine's cores.
        workers = min(workers, max(available_cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1)), 1))
        self.loader = DataLoader(
            SeededDataset(dataset, batch_sampler.seed),
            batch_sampler=batch_sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=compute.device.type == 'cuda',
            worker_init_fn=worker_init_fn,
        )
        self.mean, self.std = (torch.tensor(values, device=compute.device) for values in (MEAN, STD))
        # One for all epochs: no other stream takes over the memory that is kept for this one.
        self.stream = torch.cuda.Stream(compute.device) if compute.device.type == 'cuda' else None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        """All batches, in training from where `set_epoch` said on. Raises a sample's UserError."""
        return self._ahead(self.stream) if self.stream else map(self._placed, self._loaded())

    def _loaded(self) -> Iterator[Any]:
        """The batches as workers make them. Raises UserError where one is missing because a worker died."""
        workers: list[multiprocessing.Process] = []
        try:
            batches = iter(self.loader)
            workers = multiprocessing.active_children()
            if workers and hasattr(signal, 'SIGCHLD'):
                # PyTorch's handler would raise at any moment, as while a checkpoint is written.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            yield from batches
        except (RuntimeError, EOFError, ConnectionError) as error:  # EOFError: it died handing a batch over
            ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1)
            dead = next((worker for worker in workers if worker.sentinel in ended), None)
            if dead is None:
                raise
            dead.join()
            code = dead.exitcode
            how = f'exited with status {code}' if code >= 0 else f'is killed by signal: {signal.strsignal(-code)}'
            cure = 'if memory ran out, as most often, give fewer --workers'
            go_on = '--auto-resume goes on from the last checkpoint'
            raise UserError(f'DataLoader worker (pid {dead.pid}) {how}; {cure}; {go_on}') from error

    def _ahead(self, side: torch.cuda.Stream) -> Iterator[tuple[Tensor, Any]]:
        """On a GPU: each batch is copied and normalized on a stream of its own, while the one before it is used."""
        main, ready = torch.cuda.current_stream(side.device), None
        for batch in self._loaded():
            with torch.cuda.stream(side):
                upcoming = self._placed(batch)
            if ready is not None:
                yield ready
            main.wait_stream(side)
            images, targets = ready = upcoming
            for tensor in (images, targets) if isinstance(targets, Tensor) else (images, *targets):
                tensor.record_stream(main)  # its memory is the side stream's, which must not reuse it too early
        if ready is not None:
            yield ready

    def _placed(self, batch: Any) -> tuple[Tensor, Any]:
        if isinstance(batch, UserError):
            raise batch
        images, targets = batch
        images = self.normalize(self.compute.copied(images))
        return self.compute.images(images), self.compute.targets(targets)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 N x 3 x H x W to float32, channels-last: to 0..1, then by ImageNet's mean and standard deviation.

        A fourth channel is 1 where a pixel is of the image and 0 where it was added around it: that is 0 in the result.
        """
        pixels = images.permute(0, 2, 3, 1)
        values = pixels[..., :3].to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = (numbers.repeat(images.shape[3]) for numbers in (self.mean, self.std))
        values.flatten(2).div_(255).sub_(mean).div_(std)  # by whole rows: four times as fast as by threes
        if images.shape[1] == 4:
            values.mul_(pixels[..., 3:])
        return values.permute(0, 3, 1, 2)


def collate(samples: Sequence[Any]) -> Any:
    """Stack samples to a batch, the images channels-last; the first error among them stands for all."""
    error = next((sample for sample in samples if isinstance(sample, UserError)), None)
    if error is not None:
        return error
    # Crops come channels-last, as pictures are decoded: so stacked they are copied eight times as fast.
    images, *targets = default_collate([(image.permute(1, 2, 0), *target) for image, *target in samples])
    return [images.permute(0, 3, 1, 2), *targets]


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
