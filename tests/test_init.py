"""Moments of the initial values, tensor by tensor, family by family."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dla_up import bilinear_up
from models.resnext import ResNeXt
from tests.nets import FAMILIES, NETS, in_make_test, noise

# A sample of n normal values has its standard deviation within 5 / sqrt(2n) and its mean within 5 / sqrt(n) of the
# truth, in units of the standard deviation, but for one tensor in a million; the seed is fixed.
SIGMAS = 5


def check(tensor: Tensor, std: float = 0.0, bound: float = 0.0) -> None:
    """Against N(0, std) or U(-bound, bound), PyTorch's default for weights and biases with bound = 1 / sqrt(fan-in)."""
    n, std, largest = tensor.numel(), std or bound / math.sqrt(3), tensor.abs().max().item()
    assert abs(tensor.mean().item()) < SIGMAS * std / math.sqrt(n)
    assert abs(tensor.std().item() / std - 1) < SIGMAS / math.sqrt(2 * n)
    if bound:
        assert largest <= bound
    elif n >= 1000:  # what tells it from a uniform distribution, which ends at 1.73 standard deviations
        assert largest > 2 * std


def check_layer(net: nn.Module, name: str, layer: nn.Conv2d | nn.Linear) -> None:
    """Convolutions by their outputs, in a ResNeXt by their inputs; projections and the last layers in their own way."""
    resnext, linear = isinstance(net, ResNeXt), isinstance(layer, nn.Linear)
    fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel()
    if resnext and linear:
        check(layer.weight, std=0.01)
    elif linear or resnext and name.endswith('downsample.0'):
        check(layer.weight, bound=1 / math.sqrt(fan_in))
    else:
        check(layer.weight, std=math.sqrt(2 / (fan_in if resnext else fan_out)))
    if layer.bias is not None and (resnext or linear):
        assert not layer.bias.any()
    elif layer.bias is not None:
        check(layer.bias, bound=1 / math.sqrt(fan_in))


@in_make_test(*FAMILIES)
def test_initial_values(name: str):
    torch.manual_seed(0)
    net = (NETS | FAMILIES)[name]()
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            check_layer(net, path, module)
        elif isinstance(module, nn.BatchNorm2d):
            zero = isinstance(net, ResNeXt) and path.endswith('.bn3')
            assert (module.weight == (0 if zero else 1)).all()
            assert not module.bias.any()
            assert module.eps == 1e-5


@pytest.mark.parametrize('factor', [2, 4, 8])
def test_transposed_convolutions_begin_as_bilinear_upsampling(factor):
    x, inner = noise(1, 2, 8, 8), slice(factor, -factor)
    expected = F.interpolate(x, scale_factor=factor, mode='bilinear')
    torch.testing.assert_close(bilinear_up(2, factor)(x)[..., inner, inner], expected[..., inner, inner])
