"""Nets as they are tested: batch norms folded into convolutions, halves of a block joined. Made of a copy.

In eval mode a batch norm is y = s x + t with s = weight / sqrt(running_var + eps) and t = bias - s running_mean, so
a convolution before it can take it in. Outputs are the same up to rounding; net and state dict never change.
"""

import copy
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import deeplab, densenet, dla, resnext
from models.converted import ConvertedBottleneck
from models.elastic import TwoBranch, TwoBranchBottleneck, down, up, waits_for_memory

NORMS = nn.BatchNorm2d, nn.SyncBatchNorm


def fused(net: nn.Module) -> nn.Module:
    """A copy of the net for inference, in eval mode; same inputs, same outputs."""
    return fuse(copy.deepcopy(net).eval().requires_grad_(False))


@cache
def register_conv_relu() -> torch.library.CustomOpDef:
    """Make torch.ops.elastic.conv_relu, which computes relu(conv(x) + bias + other) in one pass of cuDNN's.

    An operator of our own, because compilers do not know the sizes of what cuDNN's return.
    """

    @torch.library.custom_op('elastic::conv_relu', mutates_args=(), device_types='cuda')
    def conv_relu(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        other: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> Tensor:
        geometry = stride, padding, dilation, groups
        try:
            if other is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
            return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *geometry)
        except RuntimeError:  # it has none of this geometry
            y = F.conv2d(x, weight, bias, *geometry)
            return (y if other is None else y.add_(other)).relu_()

    @conv_relu.register_fake
    def _sized(x, weight, bias, other, *geometry) -> Tensor:
        return F.conv2d(x, weight, bias, *geometry)

    return conv_relu


def relus_in_convs(device: torch.device) -> bool:
    """Whether the operator is known to be fast there: on NVIDIA's GPUs from Ampere on."""
    return device.type == 'cuda' and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


class Conv(nn.Module):
    """relu(conv(x) + bias + other), relu and other where asked; `geometry` is stride, padding, dilation, groups."""

    def __init__(self, weight: Tensor, bias: Tensor | None, geometry: tuple, relu: bool):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.geometry, self.relu = geometry, relu
        _, padding, _, groups = geometry
        is_plain = not isinstance(padding, str) and (groups == 1 or weight.shape[1] >= 4)
        self.in_one_pass = is_plain and relus_in_convs(weight.device)
        if self.in_one_pass:
            register_conv_relu()

    def forward(self, x: Tensor, other: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """N x in x H x W and, to be added, N x out x H' x W' -> N x out x H' x W'; by another weight where given."""
        weight = self.weight if weight is None else weight
        if self.relu and self.in_one_pass and waits_for_memory(x):
            return torch.ops.elastic.conv_relu(x, weight, self.bias, other, *self.geometry)
        y = F.conv2d(x, weight, self.bias, *self.geometry)
        if other is not None:
            y.add_(other)
        return y.relu_() if self.relu else y


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False) -> Conv:
    """The conv with the norm behind it, if any, taken in."""
    weight, bias = conv.weight, conv.bias
    if norm is not None:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - scale * norm.running_mean
        weight, bias = weight * scale.view(-1, 1, 1, 1), shift if bias is None else shift + scale * bias
    return Conv(weight, bias, (conv.stride, conv.padding, conv.dilation, conv.groups), relu)


def side_by_side(first: Conv, second: Conv, same_input: bool) -> Conv:
    """One conv for two of the same geometry, outputs one after the other, and inputs if they are two."""
    *geometry, groups = first.geometry
    if not same_input:
        groups += second.geometry[-1]
    weight, bias = torch.cat([first.weight, second.weight]), torch.cat([first.bias, second.bias])
    return Conv(weight, bias, (*geometry, groups), first.relu)


def summed(first: Conv, second: Conv) -> Conv:
    """One conv for the sum of two, over their inputs one after the other. The first one's bias is that of the sum."""
    return Conv(torch.cat([first.weight, second.weight], 1), first.bias, first.geometry, first.relu)


class Branches(nn.Module):
    """branch_sum(x) + other of a block, each branch as convs one after the other; relu where the last conv has it."""

    def __init__(self, block: TwoBranch, high: list[Conv], low: list[Conv] | None):
        super().__init__()
        if low and not block.elastic:
            halves = list(zip(high, low, strict=True))
            front = [side_by_side(*pair, same_input=place == 0) for place, pair in enumerate(halves[:-1])]
            high = [*front, summed(*halves[-1])]
        self.elastic = block.elastic
        self.high, self.last = nn.Sequential(*high[:-1]), high[-1]
        if block.elastic:
            self.low, self.low_last = nn.Sequential(*low[:-1]), low[-1]

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """N x in x H x W and, to be added, N x out x H' x W' -> N x out x H' x W'."""
        if not self.elastic:
            return self.last(self.high(x), other)
        low, size = self.low(down(x)), x.shape[-2:]
        if waits_for_memory(x) and self.last.weight.shape[2:] == (1, 1):  # as in TwoBranchBottleneck.joint_sum
            both = torch.cat([self.high(x), up(low, size)], 1)
            return self.last(both, other, torch.cat([self.last.weight, self.low_last.weight], 1))
        half = up(self.low_last(low), size)
        return self.last(self.high(x), half if other is None else half.add_(other))


def bottleneck_branches(block: TwoBranchBottleneck, relu: bool) -> Branches:
    """A bottleneck's branches, bn3 taken in, which follows their sum."""

    def branch(suffix: str) -> list[Conv]:
        conv1, bn1, conv2, bn2, conv3 = (
            block.get_submodule(name + suffix) for name in ('conv1', 'bn1', 'conv2', 'bn2', 'conv3')
        )
        return [folded(conv1, bn1, relu=True), folded(conv2, bn2, relu=True), folded(conv3, block.bn3)]

    high, low = branch(''), branch('_d') if block.split else None
    high[2].relu = relu
    if low:
        low[2].bias = None  # the norm's is in the other branch
    return Branches(block, high, low)


class ResidualBlock(nn.Module):
    """models.resnext.Bottleneck, and models.converted.ConvertedBottleneck without an inner gate."""

    def __init__(self, block: resnext.Bottleneck | ConvertedBottleneck, gate: nn.Module | None):
        super().__init__()
        self.gate, self.branches = gate, bottleneck_branches(block, relu=gate is None)
        self.downsample = None if block.downsample is None else fuse(block.downsample)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, children: None = None) -> Tensor:
        """As the block's."""
        if shortcut is None:
            shortcut = x if self.downsample is None else self.downsample(x)
        if self.gate is None:
            return self.branches(x, shortcut)
        return F.relu(self.gate(self.branches(x)).add_(shortcut), inplace=True)


class DLARoot(nn.Module):
    """models.dla.Root."""

    def __init__(self, root: dla.Root):
        super().__init__()
        self.conv, self.residual = folded(root.conv, root.bn, relu=True), root.residual

    def forward(self, x2: Tensor, *others: Tensor) -> Tensor:
        """As the root's."""
        return self.conv(torch.cat([x2, *others], 1), x2 if self.residual else None)


class DenseLayer(nn.Module):
    """models.densenet.DenseLayer: norm1 follows a concatenation, and stays."""

    def __init__(self, layer: densenet.DenseLayer):
        super().__init__()
        self.norm1 = layer.norm1
        high = [folded(layer.conv1, layer.norm2, relu=True), folded(layer.conv2)]
        low = [folded(layer.conv1_d, layer.norm2_d, relu=True), folded(layer.conv2_d)] if layer.split else None
        self.branches = Branches(layer, high, low)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        return torch.cat([x, self.branches(F.relu(self.norm1(x), inplace=True))], 1)


def fuse(module: nn.Module) -> nn.Module:
    """The module with all that it is made of fused; what has no rule of its own stays as it is."""
    rule = next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), _fuse_children)
    return rule(module)


def _fuse_children(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, fuse(child))
    return module


def _fuse_sequence(module: nn.Sequential) -> nn.Module:
    if type(module).forward is not nn.Sequential.forward:
        return _fuse_children(module)
    last = before = None  # the layer before, and its place; all keep their names, by which a net may call one
    for place, layer in enumerate(map(fuse, module)):
        module[place] = layer
        if may_fold(before, layer):
            before = folded(before, layer)
            module[last], module[place] = before, nn.Identity()
        elif isinstance(layer, nn.ReLU) and isinstance(before, Conv):
            before.relu, module[place] = True, nn.Identity()
        elif may_pool_first(before, layer):  # the mean of linear maps is the map of the mean, at a quarter of the work
            module[last], module[place], last = layer, before, place
        else:
            last, before = place, layer
    return module


def may_fold(conv: nn.Module | None, norm: nn.Module) -> bool:
    """Whether they are a convolution and a norm as Conv computes them; other libraries have others of their own."""
    is_plain = type(conv) is nn.Conv2d and conv.padding_mode == 'zeros'
    return is_plain and type(norm) in NORMS and norm.affine and norm.track_running_stats


def may_pool_first(conv: nn.Module | None, pool: nn.Module) -> bool:
    """Whether they are a convolution of single pixels and a mean of them, which give the same in the other order."""
    is_of_pixels = type(conv) is nn.Conv2d and (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0))
    return is_of_pixels and type(pool) is nn.AvgPool2d and pool.padding == 0 and pool.divisor_override is None


def _fuse_trunk(trunk: resnext.Trunk) -> nn.Module:
    trunk.conv1 = folded(trunk.conv1, trunk.bn1, relu=True)
    trunk.bn1 = trunk.relu = nn.Identity()
    return _fuse_children(trunk)


def _fuse_aspp(aspp: deeplab.ASPP) -> nn.Module:
    for conv, norm in [('conv2', 'bn2'), *((f'aspp{place}', f'aspp{place}_bn') for place in range(1, 6))]:
        setattr(aspp, conv, folded(aspp.get_submodule(conv), aspp.get_submodule(norm)))
        setattr(aspp, norm, nn.Identity())
    return aspp


RULES: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Sequential: _fuse_sequence,
    resnext.Trunk: _fuse_trunk,
    resnext.Bottleneck: lambda block: ResidualBlock(block, block.selayer),
    ConvertedBottleneck: lambda block: _fuse_children(block) if block.gate_is_inner else ResidualBlock(block, block.se),
    dla.Bottleneck: partial(bottleneck_branches, relu=True),
    dla.Root: DLARoot,
    densenet.DenseLayer: DenseLayer,
    deeplab.ASPP: _fuse_aspp,
}
