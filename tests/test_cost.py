"""Cost is counted from outside, and leaves no trace."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from models.cost import count_macs, macs_of_modules, trains_on_one
from tests.nets import FAMILIES


def small_net() -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(OrderedDict(body=body, fc=nn.Linear(8, 5)))


@pytest.mark.parametrize(('size', 'pixels'), [(16, 8 * 8), ((16, 30), 8 * 15), ((15, 9), 8 * 5)])
def test_macs_by_hand(size, pixels):
    assert count_macs(small_net(), size) == pixels * (3 * 8 * 9 + 2 * 8 * 9) + 8 * 5


def test_macs_of_modules_by_hand():
    conv, grouped, fc = 64 * 3 * 8 * 9, 64 * 2 * 8 * 9, 8 * 5
    whole = {'': conv + grouped + fc, 'body': conv + grouped}
    assert macs_of_modules(small_net(), 16) == whole | {'body.0': conv, 'body.3': grouped, 'fc': fc}
    assert macs_of_modules(nn.ReLU()) == {'': 0}


@pytest.mark.parametrize('name', ['resnext', 'dla', 'densenet'])
def test_one_image_is_taken_or_not_as_in_a_real_step(name):
    net = FAMILIES[name](5)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for size in 32, 64:
        try:
            taken = net.train()(torch.zeros(1, 3, size, size)) is not None
        except ValueError:
            taken = False
        net.load_state_dict(before)
        assert trains_on_one(net, size) == taken == (size == 64)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_builder_costs_what_its_net_does_without_what_is_recomputed():
    build = FAMILIES['densenet']
    assert count_macs(build(checkpoint_activations=True), 64) == count_macs(build, 64)


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
    before, values = snapshot(net), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert count_macs(net, 32) > 0
    assert snapshot(net) == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
