"""The block that models/convert.py makes of a bottleneck of another library."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elastic import TwoBranchBottleneck, down, up

# What a block holds: convs A, B and C, the norm behind each, the gate, whether that is before C, and the shortcut.
Parts = tuple[list[nn.Conv2d], list[nn.BatchNorm2d], nn.Module | None, bool, nn.Module | None]


class ConvertedBottleneck(TwoBranchBottleneck):
    """relu(se(bn3(branch_sum(x))) + shortcut(x)); an inner gate weighs the channels that conv3 and conv3_d are given.

    Of the parts' weights the first channels work at full resolution. What leads from half to half in a conv B of one
    group is left out.
    """

    def __init__(self, parts: Parts, elastic: bool):
        (a, b, c), (norm_a, norm_b, norm_c), gate, gate_is_inner, shortcut = parts
        axes = {'dilation': b.dilation[0], 'elastic': elastic}
        with torch.device('meta'):
            super().__init__(a.in_channels, a.out_channels, c.out_channels, max(b.groups, 2), **axes)
        self.training = a.training
        cut = {'conv1': a, 'bn1': norm_a, 'conv2': b, 'bn2': norm_b, 'conv3': c}
        state, width = {}, self.conv1.out_channels
        for name, module in cut.items():
            for key, value in module.state_dict().items():
                high, low = value.tensor_split([width], int(module is c)) if value.dim() else (value, value)
                if module is b and b.groups == 1:
                    high, low = high[:, :width], low[:, width:]
                state[f'{name}.{key}'], state[f'{name}_d.{key}'] = high.clone(), low.clone()
        self.load_state_dict(state, assign=True)
        for name, module in [*cut.items(), *((f'{name}_d', module) for name, module in cut.items())]:
            half = self.get_submodule(name).train(module.training)
            half.requires_grad_(module.weight.requires_grad)
            if isinstance(half, nn.BatchNorm2d):
                half.eps, half.momentum = module.eps, module.momentum
        self.bn3, self.se, self.gate_is_inner, self.downsample = norm_c, gate, gate_is_inner, shortcut

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the block sums: N x in x H x W -> two times N x out x H x W."""
        if not self.gate_is_inner:
            return super().branches(x)
        high, low = self.hi_middle(self.conv1(x)), self.lo_middle(self.conv1_d(down(x) if self.elastic else x))
        squeeze, excite = (module for module in self.se.modules() if isinstance(module, nn.Conv2d))
        means = torch.cat([features.mean((2, 3), keepdim=True) for features in (high, low)], 1)
        factors = excite(F.relu(squeeze(means))).sigmoid().split([high.shape[1], low.shape[1]], 1)
        half = self.conv3_d(low * factors[1])
        return self.conv3(high * factors[0]), up(half, x.shape[-2:]) if self.elastic else half

    def branch_sum(self, x: Tensor) -> Tensor:
        """Their sum."""
        return torch.add(*self.branches(x)) if self.gate_is_inner else super().branch_sum(x)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, children: None = None) -> Tensor:
        """N x in x H x W -> N x out x H x W; the other two are what timm's DLA gives its blocks."""
        if shortcut is None:
            shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn3(self.branch_sum(x))
        return F.relu((out if self.se is None or self.gate_is_inner else self.se(out)) + shortcut, inplace=True)
