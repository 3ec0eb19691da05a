"""Moments of the initial values, tensor by tensor, family by family."""

import math

import pytest
import torch
from torch import Tensor, nn

import models
from models.densenet import DenseNet
from models.dla import DLA
from models.resnext import ResNeXt

# A sample of n normal values has its standard deviation within 5 / sqrt(2n) and its mean within 5 / sqrt(n) of the
# truth, in units of the standard deviation, but for one tensor in a million; the seed is fixed.
SIGMAS = 5


def check_normal(tensor: Tensor, std: float) -> None:
    n = tensor.numel()
    assert abs(tensor.mean().item()) < SIGMAS * std / math.sqrt(n)
    assert abs(tensor.std().item() / std - 1) < SIGMAS / math.sqrt(2 * n)
    if n >= 1000:  # what tells it from a uniform distribution, which ends at 1.73 standard deviations
        assert tensor.abs().max().item() > 2 * std


def check_uniform(tensor: Tensor, bound: float) -> None:
    """U(-bound, bound), PyTorch's default for weights and biases with bound = 1 / sqrt(fan-in)."""
    assert tensor.abs().max().item() <= bound
    assert abs(tensor.mean().item()) < SIGMAS * bound / math.sqrt(3 * tensor.numel())
    assert abs(tensor.std().item() / bound * math.sqrt(3) - 1) < SIGMAS / math.sqrt(2 * tensor.numel())


def fan_in(conv: nn.Conv2d | nn.Linear) -> int:
    return conv.weight[0].numel()


def check_resnext(name: str, module: nn.Module) -> None:
    if name == 'fc':
        check_normal(module.weight, 0.01)
    elif name.endswith('downsample.0'):
        check_uniform(module.weight, 1 / math.sqrt(fan_in(module)))
    else:
        check_normal(module.weight, math.sqrt(2 / fan_in(module)))
    if module.bias is not None:
        assert not module.bias.any()


def out_std(conv: nn.Conv2d) -> float:
    return math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels))


def check_dla(name: str, module: nn.Module) -> None:
    check_normal(module.weight, out_std(module))
    if name == 'fc':
        check_uniform(module.bias, 1 / math.sqrt(fan_in(module)))


def check_densenet(name: str, module: nn.Module) -> None:
    if name == 'classifier':
        check_uniform(module.weight, 1 / math.sqrt(fan_in(module)))
        assert not module.bias.any()
    else:
        check_normal(module.weight, out_std(module))


CHECKS = {ResNeXt: check_resnext, DLA: check_dla, DenseNet: check_densenet}


@pytest.mark.parametrize('name', models.classifiers)
def test_initial_values(name: str):
    torch.manual_seed(0)
    net = models.build_classifier(name)
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            CHECKS[type(net)](path, module)
        elif isinstance(module, nn.BatchNorm2d):
            zero = isinstance(net, ResNeXt) and path.endswith('.bn3')
            assert (module.weight == (0 if zero else 1)).all()
            assert not module.bias.any()
            assert (module.eps, module.momentum) == (1e-5, 0.1)
