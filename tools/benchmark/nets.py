"""Nets at work, tested or trained: images per second, peak memory, and the share of what a matrix product reaches.

Each way to run a net has a process of its own, since memory is managed for a whole process (utils/device.py), and is
measured in rounds: a step on a CPU; on a GPU 20 steps, or those of a second, whose memory is freed for the next way
but for what belongs to CUDA graphs.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import models as torchvision_models

import models
from models.cost import count_macs
from models.norm import freeze_bn_layers, train_with_frozen_bn
from tools.benchmark.timing import Apart, Step, interleaved, rates
from utils.device import Compute, keep_freed_memory, pick_device
from utils.step import Evaluator, TrainingStep

MATRIX_SIDE = 2048  # on a CPU; a GPU needs a larger product to be busy
ROUND = 20, 1.0  # on a GPU: steps, or seconds if they come first
Build = Callable[[], nn.Module]

NETS = models.Classifiers(
    models.classifiers
    | {f'{name}/segmenter': build for name, build in models.segmenters.items()}
    | {
        f'{name}/segmenter/recomputed': partial(build, checkpoint_activations=True)
        for name, build in models.segmenters.items()
    }
)
RIVALS: dict[str, Build] = {
    name: getattr(torchvision_models, name) for name in ('resnext50_32x4d', 'resnext101_32x8d', 'densenet201')
}


@dataclass(frozen=True)
class Work:
    """What every net does."""

    device: str
    train: bool
    batch_size: int
    image_size: int
    all_gpus: bool = False  # through DataParallel; else one

    def operations(self, build: Build) -> int:
        """Floating-point operations of a net's step: two per multiply-accumulate, in training three times as many."""
        return 2 * count_macs(build, self.image_size) * self.batch_size * (3 if self.train else 1)


@dataclass(frozen=True)
class Way:
    """A net and how it is run: the reference's way is contiguous, in float32, with norms on their own."""

    net: str
    build: Build
    amp: str = 'off'
    compiled: bool = False
    reference: bool = False
    ours: bool = True

    def __str__(self) -> str:
        """The net, and in what this way differs from the default one."""
        kind = 'reference' if self.reference else called(self.amp)
        return ', '.join([self.net if self.ours else f"torchvision's {self.net}", kind, *['compiled'] * self.compiled])

    def compute(self, device: str, all_gpus: bool = False) -> Compute:
        """Where and how it runs."""
        return Compute(device, self.amp, channels_last=not self.reference, compile=self.compiled, all_gpus=all_gpus)


def called(amp: str) -> str:
    """What a precision is called in tables: `off` is float32."""
    return 'float32' if amp == 'off' else amp


def ways_of(nets: list[str], rivals: list[str], amps: list[str], compiled: bool) -> list[Way]:
    """The reference's way and ours for each net; torchvision's nets; each also compiled where asked."""
    kinds = list(product(amps, (False, True)[: 1 + compiled]))
    ways = []
    for net in nets:
        build = NETS[net]
        ways += [Way(net, build, reference=True), *(Way(net, build, *kind) for kind in kinds)]
    return ways + [Way(net, RIVALS[net], *kind, ours=False) for net in rivals for kind in kinds]


def measure(ways: list[Way], work: Work, rounds: int) -> list[dict[str, Any]]:
    """A row of numbers for each way, and the rate of a large matrix product in each precision, in the same rounds.

    torchvision's nets are compared with the first net's reference.
    """
    amps, device = dict.fromkeys(way.amp for way in ways), pick_device(work.device)
    products = {f'matrix product, {called(amp)}': matrix_product(work.device, amp) for amp in amps}
    with ExitStack() as stack:
        own = {str(way): stack.enter_context(Apart(str(way), turn_of, device, way, work)) for way in ways}
        seconds = interleaved(own | {name: turn for name, (turn, _) in products.items()}, rounds, warm_up=2)
        peaks = {name: turn.peak for name, turn in own.items()}
    reached = {name: rates(operations, seconds[name])['median'] for name, (_, operations) in products.items()}
    medians, rows = {name: statistics.median(times) for name, times in seconds.items()}, []
    for way in ways:
        name, reference = str(way), f'{way.net if way.ours else ways[0].net}, reference'
        flops = work.operations(way.build) / medians[name]
        rows.append(
            {
                'name': name,
                **rates(work.batch_size, seconds[name]),
                'times_reference': medians[reference] / medians[name] if reference in medians else None,
                'peak_bytes': peaks[name],
                'flops': flops,
                'of_matrix_product': flops / reached[f'matrix product, {called(way.amp)}'],
            }
        )
    return rows + [{'name': name, 'flops': flops} for name, flops in reached.items()]


def turn_of(way: Way, work: Work) -> Step:
    """Rounds of training or testing, which return the seconds of a step."""
    device = pick_device(work.device)
    if way.ours and not way.reference:
        keep_freed_memory(device)
    step = step_of(way, work)
    if device.type != 'cuda':
        return lambda: round_of(step)

    def turn() -> float:
        step().item()  # allocates anew what the other ways had meanwhile
        seconds = round_of(step, *ROUND)
        torch.cuda.empty_cache()
        return seconds

    return turn


def step_of(way: Way, work: Work) -> Callable[[], Tensor]:
    """A step, which returns a number of the device.

    It trains, where there are too few images with frozen batch norms, or tests a batch: as our scripts do it or, of
    other nets, calling them as they are.
    """
    torch.manual_seed(0)
    compute = way.compute(work.device, work.all_gpus)
    model = compute.place(way.build())
    if work.batch_size < getattr(model, 'smallest_batch', 1):
        freeze_bn_layers(model)
    images = compute.images(torch.randn(work.batch_size, 3, work.image_size, work.image_size))
    if work.train:
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, fused=compute.device.type == 'cuda')
        training_step = TrainingStep(model, loss_of_first_class, compute, optimizer)
        train_with_frozen_bn(model)
    elif way.ours and not way.reference:
        runner = Evaluator(model, compute).load()
    else:
        runner = compute.runner(compute.place_for_test(model.eval()), train=False)
        images = images.to(compute.dtype)

    def train() -> Tensor:
        _, loss = training_step(0, images, None)
        training_step.optimizer_step(1e-3)
        return loss

    def test() -> Tensor:
        with torch.inference_mode():
            return runner(images).flatten()[0]

    return train if work.train else test


def loss_of_first_class(outputs: Tensor, _: Any = None) -> Tensor:
    """Cross-entropy of scores N x classes or maps N x classes x H x W, the same for every net."""
    return cross_entropy(outputs, torch.zeros_like(outputs[:, 0], dtype=torch.int64))


def round_of(
    step: Callable[[], Tensor], steps: int = 1, seconds: float = 0.0, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of a step, on average over so many, or over those of so many seconds; the device is waited for once."""
    start, done = clock(), 0
    while done == 0 or (done < steps and clock() - start < seconds):
        result = step()
        done += 1
    result.item()
    return (clock() - start) / done


def matrix_product(device: str, amp: str) -> tuple[Step, float]:
    """Rounds of a product of two matrices, and its floating-point operations."""
    compute = Compute(device, amp, all_gpus=False)
    on_gpu = compute.device.type == 'cuda'
    side = MATRIX_SIDE * (4 if on_gpu else 1)
    matrix = torch.randn(side, side, device=compute.device, dtype=compute.dtype)

    def turn() -> float:
        Compute(device, amp, all_gpus=False)  # whether in TF32: others may have changed it
        return round_of(lambda: (matrix @ matrix)[0, 0], *ROUND if on_gpu else ())

    return turn, 2.0 * side**3
