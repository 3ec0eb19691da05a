"""Cost is counted from outside, and leaves no trace."""

import pytest
import torch
from torch import nn

from models.resnext import ResNeXt
from tests.nets import FAMILIES
from utils.cost import count_macs, count_parameters, macs_of_modules, trains_on_one


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(8, 5)
        self.unused = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.fc(self.body(x))


def test_parameters_by_hand():
    assert count_parameters(Small()) == (3 * 8 * 9 + 8) + 2 * 8 + (2 * 8 * 9 + 8) + (8 * 5 + 5) + (8 * 8 + 8)


@pytest.mark.parametrize(('size', 'pixels'), [(16, 8 * 8), ((16, 30), 8 * 15), ((15, 9), 8 * 5)])
def test_macs_by_hand(size, pixels):
    assert count_macs(Small(), size) == pixels * (3 * 8 * 9 + 2 * 8 * 9) + 8 * 5


def test_macs_of_modules_by_hand():
    conv, grouped, fc = 64 * 3 * 8 * 9, 64 * 2 * 8 * 9, 8 * 5
    whole = {'': conv + grouped + fc, 'body': conv + grouped}
    assert macs_of_modules(Small(), 16) == whole | {'body.0': conv, 'body.3': grouped, 'fc': fc}
    assert macs_of_modules(nn.ReLU()) == {'': 0}


def test_a_builder_costs_what_its_net_does():
    assert count_macs(FAMILIES['resnext'], 64) == count_macs(FAMILIES['resnext'](), 64)


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


def test_recomputation_is_not_counted():
    build = FAMILIES['densenet']
    assert count_macs(build(checkpoint_activations=True), 64) == count_macs(build, 64)


def snapshot(net: nn.Module) -> list:
    """Everything about a net that counting could leave changed."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return [
        {name: (id(tensor), tensor.device, tensor.requires_grad, tensor.grad) for name, tensor in tensors.items()},
        [
            (
                name,
                module.training,
                {key: len(value) for key, value in vars(module).items() if 'hooks' in key},
                sorted(vars(module)),
            )
            for name, module in net.named_modules()
        ],
    ]


@pytest.mark.parametrize('training', [False, True])
def test_nothing_is_left_on_the_net(training):
    net = ResNeXt((2, 1, 1, 1), num_classes=5, se=True, elastic=True).train(training)
    before, values = snapshot(net), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert count_macs(net, 32) > 0
    assert snapshot(net) == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in net.state_dict().items())
