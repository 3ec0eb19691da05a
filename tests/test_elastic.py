"""The Elastic operation against plain, independent computations; halves of blocks joined and cut again."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from models.elastic import PooledUp, TwoBranch, TwoBranchBottleneck, down, up
from tests.nets import CLASSIFIERS, filled, load_weights, noise
from tools.branches import halved, joined

normal = partial(noise, dtype=torch.float64)


def upsampling_matrix(n: int) -> np.ndarray:
    """2n x n: row i interpolates at (i + 0.5) / 2 - 0.5, clamped to the first and the last pixel."""
    at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))


@pytest.mark.parametrize('size', [(8, 8), (7, 8), (8, 5), (5, 7), (1, 1), (1, 4)])
def test_down_averages_pixels_after_replicating_odd_borders_and_up_interpolates_bilinearly_and_crops(size):
    x, (rows, columns) = normal(2, 3, *size), (-(-side // 2) for side in size)
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (0, size[0] % 2), (0, size[1] % 2)], mode='edge')
    half = padded.reshape(2, 3, rows, 2, columns, 2).mean((3, 5))
    np.testing.assert_allclose(down(x).numpy(), half, rtol=1e-12)
    expected = upsampling_matrix(rows)[: size[0]] @ half @ upsampling_matrix(columns)[: size[1]].T
    np.testing.assert_allclose(up(torch.from_numpy(half), size).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize('size', [(1, 1), (1, 4), (3, 2)])
def test_the_pooled_gradient_is_that_of_doubling(size):
    assert torch.autograd.gradcheck(PooledUp.apply, normal(2, 2, *size).requires_grad_())


@pytest.mark.parametrize('wrap', [lambda run: run, partial(torch.compile, backend='aot_eager')], ids=['', 'compiled'])
def test_the_joint_sum_of_gpus_is_the_sum_of_the_branches(wrap):
    block, found = load_weights(nn.Sequential(TwoBranchBottleneck(6, 16, 10, 4, elastic=True))).double()[0], []
    for run in partial(TwoBranch.branch_sum, block), wrap(block.joint_sum):
        x = normal(2, 6, 9, 8).requires_grad_()
        outputs = run(x)
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), [x, *block.parameters()])])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(('stride', 'dilation'), [(1, 1), (2, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize('training', [False, True])
def test_two_halves_at_one_resolution_are_one_block(training, stride, dilation):
    build = partial(TwoBranchBottleneck, 6, 16, 10, 4, stride, dilation=dilation)
    halves, whole = load_weights(nn.Sequential(build())).double(), nn.Sequential(build(split=False)).double()
    whole.load_state_dict(joined(halves))
    x = normal(2, 6, 9, 8)
    torch.testing.assert_close(halves.train(training)[0].branch_sum(x), whole.train(training)[0].branch_sum(x))
    torch.testing.assert_close(joined(halves), dict(whole.state_dict()))


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_halves_joined_and_cut_again_are_the_same(name):
    net = filled(name)
    whole = joined(net)
    torch.testing.assert_close(halved(net, whole), dict(net.state_dict()), rtol=0, atol=0)
    assert not [key for key in whole if '_d.' in key]


def test_a_kept_branch_output_stays_as_it_was():
    kept, block = [], TwoBranchBottleneck(6, 16, 10, 4, elastic=True)
    for conv in (block.conv3_d, block.conv3):
        conv.register_forward_hook(lambda _, __, output: kept.append((output, output.clone())))
    block.branch_sum(noise(2, 6, 8, 8))
    assert [torch.equal(output, copy) for output, copy in kept] == [True, True]


def test_elastic_needs_two_halves():
    with pytest.raises(ValueError, match='two halves'):
        TwoBranchBottleneck(6, 16, 10, 4, split=False, elastic=True)
