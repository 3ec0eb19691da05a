"""Recomputed activations change memory and time, and nothing else."""

import copy

import pytest
import torch
from torch import nn

from models.recompute import RecomputedSequential, frozen_statistics
from tests.nets import NETS, filled, noise, on_meta


def step(net: nn.Module) -> list:
    """One training step's output, gradients and statistics."""
    output = net.train()(noise(2, 3, 64, 65))
    output.square().sum().backward()
    return [output, *(p.grad for p in net.parameters() if p.requires_grad), *net.buffers()]


def nets(name: str = 'densenet_elastic') -> list[nn.Module]:
    """The same weights, plain and recomputed."""
    return [filled(name, 5, checkpoint_activations=on) for on in (False, True)]


@pytest.mark.parametrize('name', ['densenet_elastic', 'deeplab', 'dla_up'])
def test_outputs_gradients_and_statistics_are_identical(name):
    """So that the nets of full size are compared with the reference in one way only, recomputed (test_models.py)."""
    plain, recomputed = (step(net) for net in nets(name))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize(
    'name, parts, twice',
    [
        ('densenet_elastic', [f'features.denseblock{n}.denselayer1' for n in (1, 2, 3, 4)], [0]),
        ('deeplab', ['conv1', *(f'layer{n}.0' for n in (1, 2, 3, 4)), 'aspp'], [4, 3, 2, 1]),
        ('dla_up', ['base.base_layer', *(f'base.level{n}' for n in range(6)), 'dla_up'], [6, 5, 4, 3, 2, 1]),
    ],
)
def test_what_runs_twice(name, parts, twice):
    net, runs = filled(name, 5, checkpoint_activations=True), []
    for part in parts:
        net.get_submodule(part).register_forward_pre_hook(lambda *_, part=part: runs.append(part))
    step(net)
    assert runs == [*parts, *(parts[place] for place in twice)]


def test_only_the_input_is_kept():
    x, saved = torch.randn(2, 64, 8, 8, requires_grad=True), []
    for net in nets():
        block = net.features.denseblock1.train()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda tensor: tensor
        ):
            block(x)
        saved.append([tensor.data_ptr() for tensor in kept if tensor.numel()])  # PyTorch 2.11 keeps an empty one too
    assert len(saved[0]) > 20
    assert saved[1] == [x.data_ptr()]


def test_builders_take_the_keyword():
    nets = {name: on_meta(name, checkpoint_activations=True) for name in NETS if name.endswith('/seg')}
    assert len(nets) == 6
    assert all(net.checkpoint_activations for net in nets.values())
    for on in False, True:
        net = on_meta('densenet201', checkpoint_activations=on)
        assert isinstance(net.features.denseblock1, RecomputedSequential) == on


def test_statistics_are_frozen_inside_and_restored_after_an_error():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, affine=False))
    x = noise(2, 3, 8, 8)
    net(x)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError), frozen_statistics(net):
        net(3 * x)
        raise KeyError
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    assert [norm.momentum for norm in net] == [0.1, None, 0.1]
    net(x)
    assert {norm.num_batches_tracked.item() for norm in net} == {2}
