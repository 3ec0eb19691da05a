"""Initial values that several families share."""

from torch import nn


def fan_out_normal(net: nn.Module) -> None:
    """Every conv weight from N(0, sqrt(2 / (k*k*out))), He et al. 2015; biases and norms as PyTorch makes them.

    `out` is all output channels, also of a grouped conv.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
