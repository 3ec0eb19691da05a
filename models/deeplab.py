"""DeepLabv3 (Chen et al. 2017) on ResNeXt: the classifier's trunk with a dilated stage 4, and ASPP as its head."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.initial import fan_out_normal
from models.norm import set_momentum, twice
from models.recompute import recompute
from models.resnext import EXPANSION, STAGE_PLANES, Trunk, stage, stages

MULTI_GRID = 2, 4, 8  # dilations of stage 4, of stride 1: the output stride is 16
RATES = 6, 12, 18  # of ASPP at output stride 16


class ASPP(nn.Module):
    """conv 1x1 with bias(relu(bn(conv 1x1(concat of five branches)))), each branch conv, BN, ReLU.

    The branches: 1x1; 3x3 at the three rates; 1x1 on the global average, resized. Names as in the released weights.
    """

    def __init__(self, in_planes: int, depth: int, num_classes: int):
        super().__init__()
        self.aspp1 = nn.Conv2d(in_planes, depth, 1, bias=False)
        for place, rate in enumerate(RATES, 2):
            self.add_module(f'aspp{place}', nn.Conv2d(in_planes, depth, 3, padding=rate, dilation=rate, bias=False))
        self.aspp5 = nn.Conv2d(in_planes, depth, 1, bias=False)
        for place in range(1, 6):
            self.add_module(f'aspp{place}_bn', nn.BatchNorm2d(depth))
        self.conv2 = nn.Conv2d(5 * depth, depth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(depth)
        self.conv3 = nn.Conv2d(depth, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x in_planes x h x w -> N x num_classes x h x w."""
        branches = [self._branch(place, x) for place in range(1, 5)]
        pooled = self._branch(5, F.adaptive_avg_pool2d(x, 1))
        branches.append(pooled.expand(-1, -1, *x.shape[-2:]))  # a single pixel, resized
        return self.conv3(F.relu(self.bn2(self.conv2(torch.cat(branches, 1))), inplace=True))

    def _branch(self, place: int, x: Tensor) -> Tensor:
        conv, norm = self.get_submodule(f'aspp{place}'), self.get_submodule(f'aspp{place}_bn')
        return F.relu(norm(conv(x)), inplace=True)


class DeepLab(Trunk):
    """ASPP on a ResNeXt of output stride 16, resized to the input. `depths` are those of stages 1-3.

    With `checkpoint_activations` each block is recomputed in the backward pass. The reference always did that, and
    its batch norms counted each batch twice; the momentum here has the same effect in one update.
    """

    backbone: ClassVar[tuple[str, ...]] = 'conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4'
    head_names: ClassVar[tuple[str, ...]] = ('aspp',)
    untrained: ClassVar[tuple[str, ...]] = ()
    smallest_batch: ClassVar[int] = 2  # to train on: of one image's global average nothing is left once normalized

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 21,
        *,
        elastic: bool = False,
        checkpoint_activations: bool = False,
    ):
        last = stage(STAGE_PLANES[-2] * EXPANSION, STAGE_PLANES[-1], MULTI_GRID, stride=1)
        super().__init__(*stages(depths, elastic=elastic), last)
        self.aspp = ASPP(STAGE_PLANES[-1] * EXPANSION, 256, num_classes)
        self.checkpoint_activations = checkpoint_activations
        set_momentum(self.bn1, 0.05)
        for block in self.blocks():
            set_momentum(block, twice(0.05))
        set_momentum(self.aspp, 0.0003)
        fan_out_normal(self)

    @staticmethod
    def from_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a classifier's state has for this net, under this net's names: all but its fc."""
        return {name: value for name, value in state.items() if name.partition('.')[0] != 'fc'}

    def features(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x 2048 x H/16 x W/16, rounded up."""
        x = self.stem(x)
        for block in self.blocks():
            x = recompute(block, x) if self.checkpoint_activations and torch.is_grad_enabled() else block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> logits N x num_classes x H x W."""
        # In float32 at least: each gradient of the resizing sums up to 961 terms, which CUDA adds in the tensor's own
        # type. In bfloat16 a fifth of such a sum is lost.
        scores = self.aspp(self.features(x))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return F.interpolate(scores, x.shape[-2:], mode='bilinear', align_corners=True)


def resnext50(num_classes: int = 21, checkpoint_activations: bool = False) -> DeepLab:
    """DeepLabv3 on ResNeXt-50."""
    return DeepLab((3, 4, 6), num_classes, checkpoint_activations=checkpoint_activations)


def resnext50_elastic(num_classes: int = 21, checkpoint_activations: bool = False) -> DeepLab:
    """DeepLabv3 on ResNeXt-50 + Elastic."""
    return DeepLab((6, 8, 5), num_classes, elastic=True, checkpoint_activations=checkpoint_activations)


def resnext101(num_classes: int = 21, checkpoint_activations: bool = False) -> DeepLab:
    """DeepLabv3 on ResNeXt-101."""
    return DeepLab((3, 4, 23), num_classes, checkpoint_activations=checkpoint_activations)


def resnext101_elastic(num_classes: int = 21, checkpoint_activations: bool = False) -> DeepLab:
    """DeepLabv3 on ResNeXt-101 + Elastic."""
    return DeepLab((12, 14, 20), num_classes, elastic=True, checkpoint_activations=checkpoint_activations)
