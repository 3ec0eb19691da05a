"""DenseNet-201 (Huang et al. 2017), plain or Elastic."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elastic import TwoBranch
from models.initial import fan_out_normal
from models.recompute import RecomputedSequential

GROWTH = 32  # k of Huang et al.: a layer adds k channels, the stem has 2k, a bottleneck 4k


class DenseLayer(TwoBranch):
    """concat(x, branch_sum(entry(x))), entry = relu(norm1(x)), branches conv 1x1, BN, ReLU, conv 3x3.

    The attribute names, and that the low half (_d) is registered first, are those of the released weights.
    """

    def __init__(self, in_planes: int, split: bool = False, elastic: bool = False):
        super().__init__(split, elastic)
        width = 4 * GROWTH
        if split:
            width //= 2
            self.conv1_d = nn.Conv2d(in_planes, width, 1, bias=False)
            self.norm2_d = nn.BatchNorm2d(width)
            self.conv2_d = nn.Conv2d(width, GROWTH, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, GROWTH, 3, padding=1, bias=False)

    def entry(self, x: Tensor) -> Tensor:
        """N x in_planes x H x W -> the same."""
        return F.relu(self.norm1(x), inplace=True)

    def hi(self, x: Tensor) -> Tensor:
        """N x in_planes x H x W -> N x 32 x H x W."""
        return self.conv2(F.relu(self.norm2(self.conv1(x)), inplace=True))

    def lo(self, x: Tensor) -> Tensor:
        """N x in_planes x H x W -> N x 32 x H x W."""
        return self.conv2_d(F.relu(self.norm2_d(self.conv1_d(x)), inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """N x in_planes x H x W -> N x (in_planes + 32) x H x W."""
        return torch.cat([x, self.branch_sum(self.entry(x))], 1)


def _stem() -> list[tuple[str, nn.Module]]:
    return [
        ('conv0', nn.Conv2d(3, 2 * GROWTH, 7, 2, 3, bias=False)),
        ('norm0', nn.BatchNorm2d(2 * GROWTH)),
        ('relu0', nn.ReLU(inplace=True)),
        ('pool0', nn.MaxPool2d(3, 2, 1)),
    ]


def _dense_block(in_planes: int, depth: int, split: bool, elastic: bool, recomputed: bool) -> nn.Sequential:
    layers = (DenseLayer(in_planes + i * GROWTH, split, elastic) for i in range(depth))
    container = RecomputedSequential if recomputed else nn.Sequential
    return container(OrderedDict((f'denselayer{i}', layer) for i, layer in enumerate(layers, 1)))


def _transition(planes: int) -> nn.Sequential:
    """BN, ReLU, conv 1x1 to half the channels, average pool 2x2."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(planes),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(planes, planes // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions between them, BN, ReLU, global average pool, linear classifier.

    With `elastic` all layers are split, and those of all blocks but the last work at two scales. With
    `checkpoint_activations` the first block, the one with the largest maps, is recomputed in the backward pass.
    """

    head_names: ClassVar[tuple[str, ...]] = ('classifier',)

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 1000,
        *,
        elastic: bool = False,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        parts, planes = _stem(), 2 * GROWTH
        for i, depth in enumerate(depths, 1):
            last = i == len(depths)
            recomputed = checkpoint_activations and i == 1
            block = _dense_block(planes, depth, elastic, elastic and not last, recomputed=recomputed)
            parts.append((f'denseblock{i}', block))
            planes += depth * GROWTH
            if not last:
                parts.append((f'transition{i}', _transition(planes)))
                planes //= 2
        parts += [('norm_final', nn.BatchNorm2d(planes)), ('relu_final', nn.ReLU(inplace=True))]
        self.features = nn.Sequential(OrderedDict(parts))
        self.classifier = nn.Linear(planes, num_classes)
        fan_out_normal(self)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x num_classes."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def densenet201(num_classes: int = 1000, checkpoint_activations: bool = False) -> DenseNet:
    """DenseNet-201."""
    return DenseNet((6, 12, 48, 32), num_classes, checkpoint_activations=checkpoint_activations)


def densenet201_elastic(num_classes: int = 1000) -> DenseNet:
    """DenseNet-201 + Elastic."""
    return DenseNet((10, 20, 40, 30), num_classes, elastic=True)
