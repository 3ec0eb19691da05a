"""Nets at work, tested or trained: images per second, peak memory, and the share of what a matrix product reaches.

Each way to run a net has a process of its own, since memory is managed for a whole process (utils/device.py).
"""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import models as torchvision_models
from torchvision.models import segmentation

import models
from models.cost import count_macs
from tools.benchmark.timing import Apart, Step, interleaved, rates
from utils.device import Compute, keep_freed_memory
from utils.trainer import Learner

MATRIX_SIDE = 2048  # on a CPU; a GPU needs a larger product to be busy
LAYOUTS = 'channels-last', 'contiguous'
Build = Callable[[], nn.Module]


class MapOnly(nn.Module):
    """torchvision's segmenter, returning the map alone."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x classes x H x W."""
        return self.net(x)['out']


def deeplabv3_resnet50() -> nn.Module:
    """torchvision's DeepLabv3 with fresh weights, without its auxiliary head."""
    return MapOnly(segmentation.deeplabv3_resnet50(weights_backbone=None, aux_loss=False))


NETS: dict[str, Build] = {
    **models.classifiers,
    **{f'{name}/segmenter': build for name, build in models.segmenters.items()},
}
RIVALS: dict[str, Build] = {
    'resnext50_32x4d': torchvision_models.resnext50_32x4d,
    'resnext101_32x8d': torchvision_models.resnext101_32x8d,
    'densenet201': torchvision_models.densenet201,
    'deeplabv3_resnet50': deeplabv3_resnet50,
}


@dataclass(frozen=True)
class Work:
    """What every net does."""

    device: str
    train: bool
    batch_size: int
    image_size: int

    def operations(self, build: Build) -> int:
        """Floating-point operations of a net's step: two per multiply-accumulate, in training three times as many."""
        return 2 * count_macs(build, self.image_size) * self.batch_size * (3 if self.train else 1)


@dataclass(frozen=True)
class Way:
    """A net and how it is run: the reference's way is contiguous, in float32, with norms on their own."""

    net: str
    build: Build
    amp: str = 'off'
    layout: str = 'channels-last'
    compiled: bool = False
    reference: bool = False
    ours: bool = True

    def __str__(self) -> str:
        """The net, and in what this way differs from the default one."""
        kind = 'reference' if self.reference else self.amp
        others = [self.layout] * (self.layout != LAYOUTS[0] and not self.reference) + ['compiled'] * self.compiled
        return ', '.join([self.net if self.ours else f"torchvision's {self.net}", kind, *others])

    def compute(self, device: str) -> Compute:
        """Where and how it runs."""
        return Compute(device, self.amp, channels_last=self.layout == LAYOUTS[0], compile=self.compiled)


def ways_of(nets: list[str], rivals: list[str], amps: list[str], layouts: list[str], compiled: bool) -> list[Way]:
    """The reference's way and ours for each net; torchvision's nets; each also compiled where asked."""
    kinds = list(product(amps, layouts, (False, True)[: 1 + compiled]))
    ours = [way for net in nets for way in (reference_way(net), *(Way(net, NETS[net], *kind) for kind in kinds))]
    return ours + [Way(net, RIVALS[net], *kind, ours=False) for net in rivals for kind in kinds]


def reference_way(net: str) -> Way:
    """How the reference runs a net."""
    return Way(net, NETS[net], layout=LAYOUTS[1], reference=True)


def measure(ways: list[Way], work: Work, rounds: int) -> list[dict[str, Any]]:
    """A row of numbers for each way, and the rate of a large matrix product in each precision, in the same rounds."""
    amps = dict.fromkeys(way.amp for way in ways)
    products = {f'matrix product, {amp}': matrix_product(Compute(work.device, amp)) for amp in amps}
    with ExitStack() as stack:
        own = {way: stack.enter_context(apart(way, work)) for way in ways}
        steps = {str(way): step for way, step in own.items()} | {name: step for name, (step, _) in products.items()}
        seconds = interleaved(steps, rounds, warm_up=2)
        peaks = {way: step.peak() for way, step in own.items()}
    reached = {name: rates(operations, seconds[name])['median'] for name, (_, operations) in products.items()}
    rows = [row(way, peak, seconds, reached, work) for way, peak in peaks.items()]
    return rows + [{'name': name, 'flops': flops} for name, flops in reached.items()]


def apart(way: Way, work: Work) -> Apart:
    """The way's step, in its own process."""
    return Apart(str(way), step_of, way.compute(work.device).device, way, work)


def row(
    way: Way, peak: int, seconds: dict[str, list[float]], reached: dict[str, float], work: Work
) -> dict[str, float | str]:
    """The numbers of a way. torchvision's nets are compared with the first net's reference."""
    median = statistics.median(seconds[str(way)])
    reference = str(reference_way(way.net)) if way.ours else next(iter(seconds))
    flops = work.operations(way.build) / median
    return {
        'name': str(way),
        **rates(work.batch_size, seconds[str(way)]),
        'times_reference': statistics.median(seconds[reference]) / median,
        'peak_bytes': peak,
        'flops': flops,
        'of_matrix_product': flops / reached[f'matrix product, {way.amp}'],
    }


def step_of(way: Way, work: Work) -> Step:
    """A step of training; or a test of a batch, as our scripts do it or, of other nets, calling them as they are."""
    torch.manual_seed(0)
    compute = way.compute(work.device)
    if way.ours and not way.reference:
        keep_freed_memory(compute.device)
    model = compute.place(way.build())
    images = compute.images(torch.randn(work.batch_size, 3, work.image_size, work.image_size))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, fused=compute.device.type == 'cuda')
    learner = Learner(model, compute.runner(model, train=True), cross_entropy, compute, optimizer, lambda epoch: 1e-3)
    return training(learner, images) if work.train else testing(learner, images, fuse=way.ours and not way.reference)


def training(learner: Learner, images: Tensor) -> Step:
    """A training step, the same for every net."""
    with torch.no_grad():
        shape = learner.model.eval()(images[:1]).shape
    learner.model.train()
    targets = torch.zeros(len(images), *shape[2:], dtype=torch.int64, device=images.device)

    def step() -> None:
        _, loss = learner.forward(images, targets)
        learner.backward(loss)
        learner.update(1e-3)
        loss.item()

    return step


def testing(learner: Learner, images: Tensor, fuse: bool) -> Step:
    """A test of a batch."""
    compute, model = learner.compute, learner.model.eval()
    with torch.inference_mode():
        runner = learner.tester() if fuse else compute.runner(compute.place_for_test(model), train=False)
    images = images if fuse else images.to(compute.dtype)

    def step() -> None:
        with torch.inference_mode():
            runner(images).flatten()[0].item()

    return step


def matrix_product(compute: Compute) -> tuple[Step, float]:
    """A product of two matrices, and its floating-point operations."""
    side = MATRIX_SIDE * (4 if compute.device.type == 'cuda' else 1)
    matrix = torch.randn(side, side, device=compute.device, dtype=compute.dtype)
    return lambda: (matrix @ matrix)[0, 0].item(), 2.0 * side**3
