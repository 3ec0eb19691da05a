"""What is done to all batch norms of a net at once."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """Every batch norm in the module."""
    return (m for m in module.modules() if isinstance(m, _BatchNorm))


def set_momentum(module: nn.Module, momentum: float) -> None:
    """Give every batch norm in the module this momentum."""
    for norm in batch_norms(module):
        norm.momentum = momentum


def twice(momentum: float) -> float:
    """The momentum of one update that equals two with `momentum` by the same batch."""
    return 1 - (1 - momentum) ** 2


def bn_buffers(net: nn.Module) -> dict[str, Tensor]:
    """The running statistics of all batch norms, as the net's state dict names and holds them."""
    return {
        f'{name}.{key}': value
        for name, module in net.named_modules()
        if isinstance(module, _BatchNorm)
        for key, value in module.named_buffers()
    }


def freeze_bn_layers(net: nn.Module) -> nn.Module:
    """Leave weights, biases and, in `train_with_frozen_bn`, statistics of all batch norms as they are."""
    for norm in batch_norms(net):
        norm.requires_grad_(False)
    return net


def train_with_frozen_bn(net: nn.Module) -> None:
    """Training mode, in which batch norms that do not learn normalize by their running statistics and keep them."""
    net.train()
    for norm in batch_norms(net):
        norm.train(norm.weight.requires_grad)
