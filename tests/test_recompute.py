"""Recomputed activations change memory and time, and nothing else."""

import copy

import pytest
import torch
from torch import nn

import models
from models.densenet import DenseNet
from models.recompute import RecomputedSequential, frozen_statistics
from tests import reference


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 65, generator=torch.Generator().manual_seed(0))


def step(net: nn.Module) -> list:
    """One training step's output, gradients and statistics."""
    output = net.train()(images())
    output.square().sum().backward()
    return [output, *(p.grad for p in net.parameters()), *net.buffers()]


def nets() -> list[nn.Module]:
    """The same weights, plain and recomputed."""
    return [reference.load_weights(DenseNet((3, 2, 2, 2), 5, checkpoint_activations=on)) for on in (False, True)]


def test_outputs_gradients_and_statistics_are_identical():
    plain, recomputed = (step(net) for net in nets())
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_only_the_first_dense_block_runs_twice():
    _, net = nets()
    runs = []
    for name, block in net.features.named_children():
        if name.startswith('denseblock'):
            block[0].register_forward_pre_hook(lambda *_, name=name: runs.append(name))
    step(net)
    assert runs == ['denseblock1', 'denseblock2', 'denseblock3', 'denseblock4', 'denseblock1']


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


def test_a_compiled_step_is_the_same():
    plain, net = nets()
    torch.testing.assert_close(
        step(torch.compile(net, backend='aot_eager', fullgraph=True)), step(plain), rtol=1e-3, atol=1e-3
    )
    assert {norm.num_batches_tracked.item() for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)} == {1}


def test_the_builder_takes_the_keyword():
    with torch.device('meta'):
        off, on = models.densenet201(), models.build_classifier('densenet201', checkpoint_activations=True)
    assert not isinstance(off.features.denseblock1, RecomputedSequential)
    assert isinstance(on.features.denseblock1, RecomputedSequential)
    assert list(on.state_dict()) == list(off.state_dict())


def test_statistics_are_frozen_inside_and_restored_after_an_error():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, affine=False))
    net(images())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError), frozen_statistics(net):
        net(3 * images())
        raise KeyError
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    assert [norm.momentum for norm in net] == [0.1, None, 0.1]
    net(images())
    assert {norm.num_batches_tracked.item() for norm in net} == {2}
