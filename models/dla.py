"""DLA-X (Yu et al. 2018, "Deep Layer Aggregation"): trees of grouped bottlenecks, plain or Elastic."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elastic import TwoBranchBottleneck
from models.initial import fan_out_normal

CHANNELS = (16, 32, 128, 256, 512, 1024)  # of levels 0-5; Yu et al., table 1, DLA-X


class Bottleneck(TwoBranchBottleneck):
    """relu(bn3(branch_sum(x)) + residual), of width planes * cardinality / 32 throughout.

    With `elastic` it is split, and at two scales where the paper has them: at stride 1 and not in the last level.
    """

    def __init__(self, in_planes: int, planes: int, stride: int = 1, cardinality: int = 32, elastic: bool = False):
        super().__init__(
            in_planes,
            planes * cardinality // 32,
            planes,
            cardinality,
            stride,
            split=elastic,
            elastic=elastic and stride == 1 and planes < CHANNELS[-1],
        )
        self.bn3 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """N x in_planes x H x W and N x planes x H/stride x W/stride -> N x planes x H/stride x W/stride."""
        out = self.bn3(self.branch_sum(x))
        out += residual
        return F.relu(out, inplace=True)


class Root(nn.Module):
    """relu(bn(conv 1x1(concat(x2, x1, ...)))), with x2 added before the ReLU if `residual`."""

    def __init__(self, in_planes: int, planes: int, residual: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn = nn.BatchNorm2d(planes)
        self.residual = residual

    def forward(self, x2: Tensor, *others: Tensor) -> Tensor:
        """Maps of equal height and width, in_planes channels together -> N x planes x H x W."""
        out = self.bn(self.conv(torch.cat([x2, *others], 1)))
        if self.residual:
            out += x2
        return F.relu(out, inplace=True)


class Tree(nn.Module):
    """Aggregation of 2^depth blocks (Yu et al., figure 3): root(x2, x1, *children), subtrees x1 and x2.

    `child_planes` is the number of channels of all children handed to forward; a level root adds the pooled input.
    """

    def __init__(
        self,
        block: Callable[..., nn.Module],
        depth: int,
        in_planes: int,
        planes: int,
        stride: int = 1,
        *,
        child_planes: int = 0,
        level_root: bool = False,
        residual_root: bool = False,
    ):
        super().__init__()
        self.depth, self.stride, self.level_root = depth, stride, level_root
        if level_root:
            child_planes += in_planes
        if depth == 1:
            self.tree1 = block(in_planes, planes, stride)
            self.tree2 = block(planes, planes)
            self.root = Root(2 * planes + child_planes, planes, residual_root)
        else:
            subtree = partial(Tree, block, depth - 1, residual_root=residual_root)
            self.tree1 = subtree(in_planes, planes, stride)
            self.tree2 = subtree(planes, planes, child_planes=child_planes + planes)
        # Above depth 1 no one uses the projection, but the released weights have it: kept, and neither computed nor
        # trained (DistributedDataParallel waits for the gradients of all that is).
        self.project = None
        if in_planes != planes:
            self.project = nn.Sequential(nn.Conv2d(in_planes, planes, 1, bias=False), nn.BatchNorm2d(planes))
            self.project.requires_grad_(depth == 1)

    def forward(self, x: Tensor, *children: Tensor) -> Tensor:
        """N x in_planes x H x W, children at the output's size -> N x planes x ceil(H/stride) x ceil(W/stride)."""
        if self.level_root:
            children += (self._pool(x),)
        if self.depth > 1:
            x1 = self.tree1(x)
            return self.tree2(x1, *children, x1)
        bottom = self._pool(x)
        x1 = self.tree1(x, bottom if self.project is None else self.project(bottom))
        return self.root(self.tree2(x1, x1), x1, *children)

    def _pool(self, x: Tensor) -> Tensor:
        """Ceil mode: at an odd border the strided conv of tree1 rounds up as well."""
        return x if self.stride == 1 else F.max_pool2d(x, self.stride, ceil_mode=True)


def conv_bn_relu(in_planes: int, planes: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """kernel x kernel conv, BN, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_planes, planes, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(inplace=True),
    )


class DLA(nn.Module):
    """base_layer, levels 0-5 (two convs, four trees of `depths`), global average pool, 1x1 conv as classifier."""

    head_names: ClassVar[tuple[str, ...]] = ('fc',)

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 1000,
        *,
        cardinality: int = 32,
        elastic: bool = False,
        residual_root: bool = False,
    ):
        super().__init__()
        tree = partial(
            Tree, partial(Bottleneck, cardinality=cardinality, elastic=elastic), stride=2, residual_root=residual_root
        )
        self.base_layer = conv_bn_relu(3, CHANNELS[0], 7)
        self.level0 = conv_bn_relu(CHANNELS[0], CHANNELS[0], 3)
        self.level1 = conv_bn_relu(CHANNELS[0], CHANNELS[1], 3, stride=2)
        depth2, depth3, depth4, depth5 = depths
        self.level2 = tree(depth2, CHANNELS[1], CHANNELS[2])
        self.level3 = tree(depth3, CHANNELS[2], CHANNELS[3], level_root=True)
        self.level4 = tree(depth4, CHANNELS[3], CHANNELS[4], level_root=True)
        self.level5 = tree(depth5, CHANNELS[4], CHANNELS[5], level_root=True)
        self.fc = nn.Conv2d(CHANNELS[5], num_classes, 1)
        fan_out_normal(self)  # fc, a conv, too

    def levels(self) -> list[nn.Module]:
        """Levels 0-5 in the order they run; level i gives N x CHANNELS[i] x H/2^i x W/2^i, rounded up."""
        return [self.level0, self.level1, self.level2, self.level3, self.level4, self.level5]

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x num_classes."""
        x = self.base_layer(x)
        for level in self.levels():
            x = level(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1)).flatten(1)


def dla60x(num_classes: int = 1000) -> DLA:
    """DLA-X-60."""
    return DLA((1, 2, 3, 1), num_classes)


def dla60x_elastic(num_classes: int = 1000) -> DLA:
    """DLA-X-60 + Elastic."""
    return DLA((1, 2, 3, 1), num_classes, elastic=True)


def dla102x(num_classes: int = 1000) -> DLA:
    """DLA-X-102."""
    return DLA((1, 3, 4, 1), num_classes, residual_root=True)


def dla102x_elastic(num_classes: int = 1000) -> DLA:
    """DLA-X-102 + Elastic: a deeper level 2, a shallower level 4, 50 groups."""
    return DLA((3, 3, 3, 1), num_classes, cardinality=50, elastic=True, residual_root=True)
