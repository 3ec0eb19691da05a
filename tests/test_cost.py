"""Cost is counted from outside, and leaves no trace."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from models.cost import count_macs, count_parameters
from tests.nets import FAMILIES


@pytest.mark.parametrize(('size', 'pixels'), [(16, 8 * 8), ((16, 30), 8 * 15), ((15, 9), 8 * 5)])
def test_macs_by_hand(size, pixels):
    first, second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
    body = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(inplace=True), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(OrderedDict(body=body, fc=nn.Linear(8, 5)))
    conv, grouped, fc = pixels * 3 * 8 * 9, pixels * 2 * 8 * 9, 8 * 5
    assert count_macs(net, size) == conv + grouped + fc
    assert count_parameters(net) == (3 * 8 * 9 + 8) + 2 * 8 + (2 * 8 * 9 + 8) + (8 * 5 + 5)


def test_a_builder_costs_what_its_net_does_without_what_is_recomputed():
    build = FAMILIES['densenet']
    assert count_macs(build(checkpoint_activations=True), 64) == count_macs(build, 64)
    assert count_macs(nn.ReLU()) == 0


def snapshot(net: nn.Module) -> dict:
    """The values of each module's attributes, and of the dicts among them that hold its tensors and hooks."""
    return {
        (name, key): [id(held) for held in value.values()] if isinstance(value, dict) else id(value)
        for name, module in net.named_modules()
        for key, value in vars(module).items()
    }


@pytest.mark.parametrize('training', [False, True])
def test_nothing_is_left_on_the_net(training):
    net = FAMILIES['resnext'](5).train(training)
    before, values = snapshot(net), copy.deepcopy(net.state_dict())
    assert count_macs(net, 64)
    assert snapshot(net) == before
    torch.testing.assert_close(dict(net.state_dict()), dict(values), rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in net.parameters())
