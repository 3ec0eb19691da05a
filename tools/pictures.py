"""Pictures for a net to look at, and its outputs for them: what the tools have in common."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from data.image_folder import pil_loader
from utils.cli import Parser, add_device_argument, at_least_32, nonnegative_int, positive_int
from utils.device import Compute
from utils.loader import DeviceLoader, EvalBatchSampler


def add_test_arguments(parser: Parser) -> None:
    """How the tools that look at a classifier run it on pictures; the batch is classify.py's in testing."""
    add = parser.add_argument
    add('--image-size', type=at_least_32, default=224, metavar='PIXELS', help='side of the crop, as in training')
    add('-b', '--batch-size', type=positive_int, default=32, metavar='N', help='images at once')
    add('-j', '--workers', type=nonnegative_int, default=0, metavar='N', help='loading processes')
    add_device_argument(add)


class Pictures(Dataset):
    """Pairs of a transformed picture, uint8 3 or 4 x H x W, and its place among the paths."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(pil_loader(str(self.paths[index]))), index


def make_loader(
    pictures: Dataset, args: Namespace, compute: Compute, groups: Sequence[Sequence[int]] | None = None
) -> DeviceLoader:
    """Batches of each group's pictures in its order, without groups of all; `args` of add_test_arguments."""
    batches = EvalBatchSampler(groups or [range(len(pictures))], args.batch_size)
    return DeviceLoader(pictures, batches, compute, args.workers)


@torch.inference_mode()
def outputs_of(
    model: nn.Module, pictures: Dataset, args: Namespace, groups: Sequence[Sequence[int]] | None = None
) -> Iterator[tuple[Tensor, Any]]:
    """Outputs on the CPU and target of each picture, in the order of make_loader; the model is moved to the device."""
    compute = Compute(args.device)
    net = compute.runner(compute.place(model).eval(), train=False)
    for images, targets in tqdm(make_loader(pictures, args, compute, groups), disable=None, leave=False):
        yield from zip(net(images).cpu(), targets.cpu(), strict=True)
