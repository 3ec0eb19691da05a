"""The tensors of an ordinary block cut into the two halves of a split one (models/elastic.py), and joined again.

Without scales both compute the same:

    conv3(relu(bn2(conv2(...)))) = conv3(hi channels) + conv3_d(lo channels)

because convs 1 and 2 (conv2 by whole groups) and their norms keep the halves of the channels apart, and a branch's last
conv sums over them. The high half takes the first half of the channels, the low half (_d) the rest; the released
weights say nothing about which is which, and where both run at full resolution it makes no difference.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.densenet import DenseLayer
from models.elastic import TwoBranchBottleneck

# Of which dimension of its tensors each layer of a branch has half: outputs are 0, the last conv's inputs 1.
HALVED_DIMENSIONS: dict[type[nn.Module], dict[str, int]] = {
    TwoBranchBottleneck: {'conv1': 0, 'bn1': 0, 'conv2': 0, 'bn2': 0, 'conv3': 1},
    DenseLayer: {'conv1': 0, 'norm2': 0, 'conv2': 1},
}


def low_halves(net: nn.Module) -> dict[str, tuple[str, int]]:
    """Of every tensor of a high half the name of its low twin, and the dimension along which they are joined."""
    found = {}
    for path, block in net.named_modules():
        for kind, dimensions in HALVED_DIMENSIONS.items():
            if isinstance(block, kind) and block.split:
                for layer, dimension in dimensions.items():
                    for tensor in block.get_submodule(layer).state_dict():
                        found[f'{path}.{layer}.{tensor}'] = f'{path}.{layer}_d.{tensor}', dimension
    return found


def joined(net: nn.Module) -> dict[str, Tensor]:
    """The net's state as that of ordinary blocks: both halves under the plain name."""
    state = net.state_dict()
    low = low_halves(net)
    for name, (twin, dimension) in low.items():
        other = state.pop(twin)
        if other.dim():  # else a count of batches, which is the same in both
            state[name] = torch.cat([state[name], other], dimension)
    return state


def halved(net: nn.Module, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of ordinary blocks cut as the net's are; tensors it has no halves for stay as they are."""
    state = dict(whole)
    for name, (twin, dimension) in low_halves(net).items():
        if name in whole:
            value = whole[name]
            state[name], state[twin] = value.tensor_split(2, dimension) if value.dim() else (value, value)
    return state
