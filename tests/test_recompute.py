"""Recomputed activations change memory and time, and nothing else."""

import copy

import pytest
import torch
from torch import nn

from models.recompute import frozen_statistics
from tests.nets import filled, noise


def step(net: nn.Module) -> list:
    """One training step's output, gradients and statistics."""
    output = net.train()(noise(2, 3, 64, 65))
    output.square().sum().backward()
    return [output, *(p.grad for p in net.parameters() if p.requires_grad), *net.buffers()]


@pytest.mark.parametrize(
    'name, parts, twice',
    [
        ('densenet_elastic', [f'features.denseblock{n}.denselayer1' for n in (1, 2, 3, 4)], [0]),
        ('deeplab', ['conv1', *(f'layer{n}.0' for n in (1, 2, 3, 4)), 'aspp'], [4, 3, 2, 1]),
        ('dla_up', ['base.base_layer', *(f'base.level{n}' for n in range(6)), 'dla_up'], [6, 5, 4, 3, 2, 1]),
    ],
)
def test_a_step_runs_some_parts_twice_and_is_the_same(name, parts, twice):
    """So that the nets of full size are compared with the reference in one way only, recomputed (test_models.py)."""
    net, runs = filled(name, 5, checkpoint_activations=True), []
    for part in parts:
        net.get_submodule(part).register_forward_pre_hook(lambda *_, part=part: runs.append(part))
    both = zip(step(filled(name, 5, checkpoint_activations=False)), step(net), strict=True)
    assert all(torch.equal(plain, recomputed) for plain, recomputed in both)
    assert runs == [*parts, *(parts[place] for place in twice)]


def test_only_the_input_is_kept():
    x, saved = torch.randn(2, 64, 8, 8, requires_grad=True), {False: [], True: []}
    for recomputed, kept in saved.items():
        block = filled('densenet_elastic', 5, checkpoint_activations=recomputed).features.denseblock1.train()
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            block(x)
    assert len(saved[False]) > 20
    # PyTorch 2.11 keeps an empty one too.
    assert [tensor.data_ptr() for tensor in saved[True] if tensor.numel()] == [x.data_ptr()]


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
