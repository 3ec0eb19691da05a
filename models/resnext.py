"""ResNeXt 32x4d (Xie et al. 2017), every block in two halves; squeeze-and-excitation (Hu et al. 2018) as an option."""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from models.elastic import TwoBranchBottleneck

STAGE_PLANES = (64, 128, 256, 512)
EXPANSION = 4


class SELayer(nn.Module):
    """x * sigmoid(conv2(relu(conv1(mean(x))))), the convs 1x1 with bias; reduction 16 as in Hu et al., section 6.1."""

    def __init__(self, planes: int, reduction: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(planes, planes // reduction, 1)
        self.conv2 = nn.Conv2d(planes // reduction, planes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x C x H x W."""
        scale = F.relu(self.conv1(F.adaptive_avg_pool2d(x, 1)), inplace=True)
        return x * self.conv2(scale).sigmoid()


class Bottleneck(TwoBranchBottleneck):
    """relu(se(bn3(branch_sum(x))) + shortcut(x)), shortcut = BN(conv 1x1) where the shape changes, else x.

    Width = planes * base_width / 64, rounded, in each of `cardinality` groups (Xie et al., table 1). `elastic` asks for
    two scales, and gets them where the paper has them: at stride 1 and not in the last stage.
    """

    def __init__(
        self,
        in_planes: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        cardinality: int = 32,
        base_width: float = 4,
        se: bool = False,
        elastic: bool = False,
    ):
        out_planes = planes * EXPANSION
        super().__init__(
            in_planes,
            round(planes * base_width / 64) * cardinality,
            out_planes,
            cardinality,
            stride,
            dilation=dilation,
            elastic=elastic and stride == 1 and planes < STAGE_PLANES[-1],
        )
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.selayer = SELayer(out_planes) if se else None
        self.downsample = None
        if stride != 1 or in_planes != out_planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, out_planes, 1, stride, bias=False), nn.BatchNorm2d(out_planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """N x in_planes x H x W -> N x 4*planes x H/stride x W/stride."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn3(self.branch_sum(x))
        if self.selayer is not None:
            out = self.selayer(out)
        out += shortcut
        return F.relu(out, inplace=True)


def stage(in_planes: int, planes: int, dilations: Sequence[int], stride: int, **axes) -> nn.Sequential:
    """One block per dilation; the first takes the stride. `axes`: Bottleneck's cardinality, base_width, se, elastic."""
    first, *rest = dilations
    return nn.Sequential(
        Bottleneck(in_planes, planes, stride, first, **axes),
        *(Bottleneck(planes * EXPANSION, planes, 1, dilation, **axes) for dilation in rest),
    )


def stages(depths: Sequence[int], **axes) -> list[nn.Sequential]:
    """The first len(depths) stages of a ResNeXt, 1/4, 1/8, 1/16 and 1/32 of the input's resolution."""
    widths = STAGE_PLANES[: len(depths)]
    in_planes = (64, *(planes * EXPANSION for planes in widths[:-1]))
    return [
        stage(before, planes, [1] * depth, 1 if planes == STAGE_PLANES[0] else 2, **axes)
        for before, planes, depth in zip(in_planes, widths, depths, strict=True)
    ]


class Trunk(nn.Module):
    """Stem and four stages; a classifier or a segmenter adds its head behind them under its own name."""

    def __init__(self, layer1: nn.Module, layer2: nn.Module, layer3: nn.Module, layer4: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = layer1
        self.layer2 = layer2
        self.layer3 = layer3
        self.layer4 = layer4

    def stem(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x 64 x H/4 x W/4."""
        return F.max_pool2d(self.relu(self.bn1(self.conv1(x))), 3, 2, 1)

    def blocks(self) -> list[nn.Module]:
        """The blocks of all stages in the order they run, for instance to run each with its activations recomputed."""
        return [*self.layer1, *self.layer2, *self.layer3, *self.layer4]

    def features(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x 2048 x H/32 x W/32 (of a stage 4 of stride 1: H/16 x W/16)."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))


class ResNeXt(Trunk):
    """Trunk, global average pool, linear classifier."""

    head_names: ClassVar[tuple[str, ...]] = ('fc',)

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 1000,
        *,
        cardinality: int = 32,
        base_width: float = 4,
        se: bool = False,
        elastic: bool = False,
    ):
        super().__init__(*stages(depths, cardinality=cardinality, base_width=base_width, se=se, elastic=elastic))
        self.fc = nn.Linear(STAGE_PLANES[-1] * EXPANSION, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Kaiming-normal convs, but projections as PyTorch makes them; each block starts as its shortcut (bn3 = 0).

        The reference leaves the projections' batch norms alone too: weights of 1 with the PyTorch of today, here as
        there, but drawn from U(0, 1) with 0.4.1 and 1.0, with which the released nets were trained.
        """
        projections = {block.downsample[0] for block in self.blocks() if block.downsample is not None}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module not in projections:
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks():
            nn.init.zeros_(block.bn3.weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x num_classes."""
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def resnext50(num_classes: int = 1000) -> ResNeXt:
    """ResNeXt-50 32x4d."""
    return ResNeXt((3, 4, 6, 3), num_classes)


def resnext50_elastic(num_classes: int = 1000) -> ResNeXt:
    """ResNeXt-50 + Elastic; its depths cost what those of the plain net do."""
    return ResNeXt((6, 8, 5, 3), num_classes, elastic=True)


def resnext101(num_classes: int = 1000) -> ResNeXt:
    """ResNeXt-101 32x4d."""
    return ResNeXt((3, 4, 23, 3), num_classes)


def resnext101_elastic(num_classes: int = 1000) -> ResNeXt:
    """ResNeXt-101 + Elastic."""
    return ResNeXt((12, 14, 20, 3), num_classes, elastic=True)


def se_resnext50(num_classes: int = 1000) -> ResNeXt:
    """SE-ResNeXt-50 32x4d."""
    return ResNeXt((3, 4, 6, 3), num_classes, se=True)


def se_resnext50_elastic(num_classes: int = 1000) -> ResNeXt:
    """SE-ResNeXt-50 + Elastic."""
    return ResNeXt((6, 8, 5, 3), num_classes, se=True, elastic=True)
