"""DLA-Up (Yu et al. 2018): segmentation by iterative deep aggregation of a DLA classifier's levels 1-5."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import dla
from models.initial import fan_out_normal
from models.norm import set_momentum, twice
from models.recompute import recompute


def bilinear_up(planes: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed conv per channel that starts as bilinear upsampling: N x planes x h x w -> N x planes x fh x fw."""
    up = nn.ConvTranspose2d(planes, planes, 2 * factor, factor, factor // 2, groups=planes, bias=False)
    center = (2 * factor - 1 - factor % 2) / (2 * factor)
    ramp = 1 - (torch.arange(2 * factor) / factor - center).abs()
    with torch.no_grad():
        up.weight.copy_(ramp[:, None] * ramp)
    return up


class IDAUp(nn.Module):
    """x_k = node_k(concat(x_{k-1}, up_k(proj_k(input k)))), x_0 = input 0; node conv 3x3, proj conv 1x1, each BN ReLU.

    All inputs come to the channels and resolution of input 0. Attribute names as in the released weights.
    """

    def __init__(self, planes: int, in_planes: Sequence[int], factors: Sequence[int]):
        super().__init__()
        for k, (before, factor) in enumerate(zip(in_planes, factors, strict=True), 1):
            project = before != planes
            self.add_module(f'proj_{k}', dla.conv_bn_relu(before, planes, 1) if project else nn.Identity())
            self.add_module(f'up_{k}', bilinear_up(planes, factor) if factor > 1 else nn.Identity())
        for k in range(1, len(in_planes) + 1):
            self.add_module(f'node_{k}', dla.conv_bn_relu(2 * planes, planes, 3))

    def forward(self, x: Tensor, *others: Tensor) -> list[Tensor]:
        """N x planes x h x w and the smaller maps -> x_1, x_2, ..., each N x planes x h x w."""
        results = []
        for k, other in enumerate(others, 1):
            other = self.get_submodule(f'up_{k}')(self.get_submodule(f'proj_{k}')(other))
            x = self.get_submodule(f'node_{k}')(torch.cat([x, other[..., : x.shape[-2], : x.shape[-1]]], 1))
            results.append(x)
        return results


class DLAUp(nn.Module):
    """ida_i aggregates the last i + 2 maps at the first of them, i = 0, 1, ..., until all are at the largest."""

    def __init__(self, planes: Sequence[int]):
        super().__init__()
        planes, factors = list(planes), [2**level for level in range(len(planes))]
        self.steps = len(planes) - 1
        for i in range(self.steps):
            first = -i - 2
            relative = [factor // factors[first] for factor in factors[first + 1 :]]
            self.add_module(f'ida_{i}', IDAUp(planes[first], planes[first + 1 :], relative))
            planes[first + 1 :] = [planes[first]] * (i + 1)
            factors[first + 1 :] = [factors[first]] * (i + 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, each half the size of the one before -> one of the first one's size and channels."""
        maps = list(maps)
        for i in range(self.steps):
            maps[-i - 1 :] = self.get_submodule(f'ida_{i}')(*maps[-i - 2 :])
        return maps[-1]


class DLASegmenter(nn.Module):
    """log-softmax(up(fc(DLA-Up of levels 1-5))): the whole classifier is `base`, whose own fc nothing uses.

    With `checkpoint_activations` each level is recomputed in the backward pass. The reference always did that, and
    its batch norms counted each batch twice; the momentum here has the same effect in one update.
    """

    backbone: ClassVar[tuple[str, ...]] = ('base',)
    head_names: ClassVar[tuple[str, ...]] = 'dla_up', 'fc'
    untrained: ClassVar[tuple[str, ...]] = 'up', 'base.fc'  # in the released weights all the same
    smallest_batch: ClassVar[int] = 1  # to train on

    def __init__(self, base: dla.DLA, num_classes: int = 21, *, checkpoint_activations: bool = False):
        super().__init__()
        self.base = base
        self.base.fc.requires_grad_(False)  # nobody calls it
        self.dla_up = DLAUp(dla.CHANNELS[1:])
        self.fc = nn.Sequential(nn.Conv2d(dla.CHANNELS[1], num_classes, 1))
        self.up = bilinear_up(num_classes, 2).requires_grad_(False)
        self.checkpoint_activations = checkpoint_activations
        for level in base.levels():
            set_momentum(level, twice(0.1))
        for part in (self.dla_up, self.fc):
            fan_out_normal(part)

    @staticmethod
    def from_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a classifier's state has for this net, under this net's names: all of it, as `base`."""
        return {f'base.{name}': value for name, value in state.items()}

    def levels(self, x: Tensor) -> list[Tensor]:
        """N x 3 x H x W -> levels 1-5, N x CHANNELS[i] x H/2^i x W/2^i, rounded up."""
        x, maps = self.base.base_layer(x), []
        for level in self.base.levels():
            x = recompute(level, x) if self.checkpoint_activations and torch.is_grad_enabled() else level(x)
            maps.append(x)
        return maps[1:]

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> log-probabilities N x num_classes x H x W."""
        out = self.up(self.fc(self.dla_up(self.levels(x))))
        return F.log_softmax(out[..., : x.shape[-2], : x.shape[-1]], 1)


def dla60x(num_classes: int = 21, checkpoint_activations: bool = False) -> DLASegmenter:
    """DLA-Up on DLA-X-60."""
    return DLASegmenter(dla.dla60x(), num_classes, checkpoint_activations=checkpoint_activations)


def dla60x_elastic(num_classes: int = 21, checkpoint_activations: bool = False) -> DLASegmenter:
    """DLA-Up on DLA-X-60 + Elastic."""
    return DLASegmenter(dla.dla60x_elastic(), num_classes, checkpoint_activations=checkpoint_activations)
