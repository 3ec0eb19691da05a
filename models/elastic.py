"""The Elastic operation (Wang et al. 2019, section 3), shared by all backbones.

A block of a backbone is split into two halves, each with half the width and half the groups. Where the block is
elastic one half works at half the resolution, and the two are summed:

    hi(x) + up(lo(down(x)))

Which scale matters is learned, block by block, at no extra parameter and with fewer multiply-accumulates.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def down(x: Tensor) -> Tensor:
    """Halves the resolution by averaging 2x2 pixels: N x C x H x W -> N x C x ceil(H/2) x ceil(W/2).

    At an odd border the window averages the pixels that exist, which is the same as replicating the last row or
    column first, without the copy.
    """
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def up(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Doubles the resolution bilinearly and crops to `size`: N x C x h x w -> N x C x H x W, h = ceil(H/2)."""
    # In the tensor's own type, unlike DeepLab's resizing: a gradient sums up 16 terms, which CUDA adds in that type.
    # Of one sign and in the worst order that costs 0.5 % in bfloat16 (2 % at most, no bias), where to round the exact
    # sum costs 0.2 %; float32 would double what these maps read and write. Transposed convs (DLA-Up) add in float32.
    resize = PooledUp.apply if x.requires_grad and torch.compiler.is_compiling() else double
    # On GPUs autocast makes float32 of what is resized, and so of all behind it.
    with torch.autocast('cuda', enabled=False) if x.is_cuda else nullcontext():
        x = resize(x)
    return x if x.shape[-2:] == size else x[..., : size[0], : size[1]]


def double(x: Tensor) -> Tensor:
    """N x C x h x w -> N x C x 2h x 2w, bilinearly."""
    return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)


class PooledUp(torch.autograd.Function):
    """`double` with another way to its gradient: three average poolings, where torch.compile would add each of 16 terms
    to memory on its own. In a row a gradient is a quarter of 1, 3, 3 and 1 times its neighbours'."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """As `double`."""
        return double(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """N x C x 2h x 2w -> N x C x h x w."""
        means = F.avg_pool2d(gradient, 2, stride=1, padding=1, count_include_pad=False)  # a border repeats itself
        return 4 * F.avg_pool2d(F.avg_pool2d(means, 2, stride=1), 2)


def waits_for_memory(x: Tensor) -> bool:
    """Whether convolutions of x wait for memory more than for arithmetic: on a GPU, in half precision."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


class TwoBranch(nn.Module):
    """A sum of branches: whole, in two halves, or in two halves at two scales.

        branch_sum(x) = hi(x) + up(lo(down(x)))   split and elastic
                        hi(x) + lo(x)             split; the same as one branch of the full width
                        hi(x)                     not split

    Subclasses define `hi` and, where they split, `lo`, which keep the size of an elastic block's input, and `entry`
    where it is not the block's input itself that is split.
    """

    def __init__(self, split: bool, elastic: bool):
        super().__init__()
        if elastic and not split:
            raise ValueError('an elastic block needs two halves')
        self.split = split
        self.elastic = elastic

    def entry(self, x: Tensor) -> Tensor:
        """What `branch_sum` is given of the block's input."""
        return x

    def hi(self, x: Tensor) -> Tensor:
        """The branch at full resolution."""
        raise NotImplementedError

    def lo(self, x: Tensor) -> Tensor:
        """The other half, at half the resolution where the block is elastic."""
        raise NotImplementedError

    def branch_sum(self, x: Tensor) -> Tensor:
        """The sum: N x in_planes x H x W -> N x out_planes x H/stride x W/stride, not yet normalized."""
        if self.elastic:
            # In place: 4 (bf16) to 9 % (float32) less time for ResNeXt-50 + Elastic on a CPU. Into the upsampled map,
            # because hooks may keep what conv3 and conv3_d return.
            return up(self.lo(down(x)), x.shape[-2:]).add_(self.hi(x))
        return self.hi(x) + self.lo(x) if self.split else self.hi(x)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What an elastic block sums, apart: hi(x) and up(lo(down(x))), both of the sum's shape."""
        return self.hi(x), up(self.lo(down(x)), x.shape[-2:])


class TwoBranchBottleneck(TwoBranch):
    """Branches conv 1x1, BN, ReLU, conv 3x3 (grouped), BN, ReLU, conv 1x1, as ResNeXt and DLA have them.

    `width` and `groups` are those of both halves together. What follows the sum (bn3, shortcut) is the backbone's.
    The attribute names, and that the low half (_d) is registered first, are those of the released weights.
    """

    def __init__(
        self,
        in_planes: int,
        width: int,
        out_planes: int,
        groups: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        split: bool = True,
        elastic: bool = False,
    ):
        super().__init__(split, elastic)
        if elastic and stride != 1:
            raise ValueError('an elastic block keeps the resolution of its input')
        if split:  # by whole groups; of an odd number the high half has one more
            low = groups // 2
            low_width = width // groups * low
            self._add_branch('_d', in_planes, low_width, out_planes, stride=stride, groups=low, dilation=dilation)
            width, groups = width - low_width, groups - low
        self._add_branch('', in_planes, width, out_planes, stride=stride, groups=groups, dilation=dilation)

    def _add_branch(self, suffix: str, in_planes: int, width: int, out_planes: int, **conv2) -> None:
        branch = {
            'conv1': nn.Conv2d(in_planes, width, 1, bias=False),
            'bn1': nn.BatchNorm2d(width),
            'conv2': nn.Conv2d(width, width, 3, padding=conv2['dilation'], bias=False, **conv2),
            'bn2': nn.BatchNorm2d(width),
            'conv3': nn.Conv2d(width, out_planes, 1, bias=False),
        }
        for name, module in branch.items():
            self.add_module(name + suffix, module)

    def hi(self, x: Tensor) -> Tensor:
        """N x in_planes x H x W -> N x out_planes x H/stride x W/stride."""
        return self.conv3(self.hi_middle(self.conv1(x)))

    def lo(self, x: Tensor) -> Tensor:
        """N x in_planes x H x W -> N x out_planes x H/stride x W/stride."""
        return self.conv3_d(self.lo_middle(self.conv1_d(x)))

    def hi_middle(self, x: Tensor) -> Tensor:
        """From what conv1 gives to what conv3 is given: N x C x H x W -> N x C x H/stride x W/stride."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(x), inplace=True))), inplace=True)

    def lo_middle(self, x: Tensor) -> Tensor:
        """From what conv1_d gives to what conv3_d is given: N x C x H x W -> N x C x H/stride x W/stride."""
        return F.relu(self.bn2_d(self.conv2_d(F.relu(self.bn1_d(x), inplace=True))), inplace=True)

    def branch_sum(self, x: Tensor) -> Tensor:
        """The sum: N x in_planes x H x W -> N x out_planes x H/stride x W/stride, not yet normalized."""
        return self.joint_sum(x) if self.elastic and waits_for_memory(x) else super().branch_sum(x)

    def joint_sum(self, x: Tensor) -> Tensor:
        """An elastic block's sum with fewer passes over large maps, and more multiply-accumulates.

        Convolutions of single pixels may trade places with `down` and `up`, which are linear too: one conv1 for both
        halves stands before `down`, and one conv3 behind `up`, which also adds them.
        """
        if torch.compiler.is_compiling():
            conv1 = torch.cat([self.conv1.weight, self.conv1_d.weight])
            hi, lo = F.conv2d(x, conv1).split([self.conv1.out_channels, self.conv1_d.out_channels], 1)
        else:  # not compiled, norms are slow with parts of a map
            hi, lo = self.conv1(x), self.conv1_d(x)
        hi, lo = self.hi_middle(hi), self.lo_middle(down(lo))
        conv3 = torch.cat([self.conv3.weight, self.conv3_d.weight], 1)
        return F.conv2d(torch.cat([hi, up(lo, hi.shape[-2:])], 1), conv3)
