"""Memory and speed: what segmentation takes, and how many images a second two nets get through."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import models
from tools.benchmark.nets import NETS, RIVALS, Way, Work, measure, step_of
from tools.benchmark.timing import peak_memory
from tools.check_gpu.result import Result

GIB = 2**30
BATCH = 128  # images of which the rates are


def segmentation_memory(
    device: torch.device, net: str = 'resnext50_elastic', batch: int = 16, side: int = 513, amp: str = 'off'
) -> Result:
    """The peak of a training step with recomputed activations; on a GPU without what trying algorithms takes."""
    way = Way(net, partial(models.build_segmenter, net, checkpoint_activations=True), amp)
    step = step_of(way, Work(device.type, True, batch, side))
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    step()
    peak = peak_memory(device)
    # The step's growth on a CPU says 4.4 GiB in float32 (docs/voc.md); kept activations would take 15.4.
    return Result(peak <= 8 * GIB, f'{peak / GIB:.1f} GiB', 'at most 8 GiB')


def rates(device: torch.device, size: int = 224, rounds: int = 3) -> Iterator[dict[str, Any]]:
    """Of resnext50_elastic and torchvision's resnext50_32x4d, tested and trained, compiled in bfloat16."""
    ways = [
        Way('resnext50_elastic', NETS['resnext50_elastic'], 'bf16', compiled=True),
        Way('resnext50_32x4d', RIVALS['resnext50_32x4d'], 'bf16', compiled=True, ours=False),
    ]
    for work in 'tested', 'trained':
        for row in measure(ways, Work(device.type, work == 'trained', BATCH, size), rounds):
            if 'median' in row:  # else of the matrix product
                yield row | {'work': work}
