"""The Elastic operation against plain, independent computations; halves of blocks joined and cut again."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from models.elastic import SplitBottleneck, down, up
from models.halves import halved, joined
from models.resnext import SELayer
from tests.nets import CLASSIFIERS, filled, noise
from tests.reference import load_weights

SIZES = [(8, 8), (7, 8), (8, 5), (5, 7), (1, 1), (1, 4)]
normal = partial(noise, dtype=torch.float64)


def with_random_weights(module: nn.Module) -> nn.Module:
    return load_weights(module.double()).eval()


def merge_halves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the ordinary block, or net of ordinary blocks, that two halves at one resolution amount to."""
    merged = {}
    for name, high in state.items():
        layer, _, tensor = name.rpartition('.')
        low = state.get(f'{layer}_d.{tensor}')
        if not layer.endswith('_d'):
            dim = 1 if layer.endswith('conv3') else 0
            merged[name] = high if low is None or high.dim() == 0 else torch.cat([low, high], dim)
    return merged


@pytest.mark.parametrize('size', SIZES)
def test_down_averages_pixels_after_replicating_odd_borders(size):
    x = normal(2, 3, *size)
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (0, size[0] % 2), (0, size[1] % 2)], mode='edge')
    expected = (padded[..., ::2, ::2] + padded[..., 1::2, ::2] + padded[..., ::2, 1::2] + padded[..., 1::2, 1::2]) / 4
    np.testing.assert_allclose(down(x).numpy(), expected, rtol=1e-12)


def upsampling_matrix(n: int) -> np.ndarray:
    """2n x n: row i interpolates at (i + 0.5) / 2 - 0.5, clamped to the first and the last pixel."""
    at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))


@pytest.mark.parametrize('size', SIZES)
def test_up_interpolates_bilinearly_and_crops(size):
    x = normal(2, 3, *(-(-side // 2) for side in size))
    rows, columns = (upsampling_matrix(side)[:full] for side, full in zip(x.shape[2:], size, strict=True))
    np.testing.assert_allclose(up(x, torch.Size(size)).numpy(), rows @ x.numpy() @ columns.T, rtol=1e-12)


def branch(x: Tensor, state: dict[str, Tensor], suffix: str, **conv2) -> Tensor:
    """A half in eval mode from its tensors alone; its 3x3 conv has two groups."""
    for i, options in ((1, {}), (2, {'groups': 2, 'padding': 1, **conv2})):
        mean, var, weight, bias = (
            state[f'bn{i}{suffix}.{name}'].view(-1, 1, 1) for name in ('running_mean', 'running_var', 'weight', 'bias')
        )
        x = F.conv2d(x, state[f'conv{i}{suffix}.weight'], **options)
        x = ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)
    return F.conv2d(x, state[f'conv3{suffix}.weight'])


@pytest.mark.parametrize('size', SIZES)
def test_elastic_block_sums_two_scales(size):
    block = with_random_weights(SplitBottleneck(6, 16, 10, groups=4, elastic=True))
    state, x = block.state_dict(), normal(2, 6, *size)
    height, width = size
    low = F.avg_pool2d(F.pad(x, (0, width % 2, 0, height % 2), mode='replicate'), 2)
    low = F.interpolate(branch(low, state, '_d'), scale_factor=2, mode='bilinear')[..., :height, :width]
    with torch.no_grad():
        torch.testing.assert_close(block.merged(x), branch(x, state, '') + low)


@pytest.mark.parametrize(('stride', 'dilation'), [(2, 1), (1, 2), (1, 8)])
def test_stride_and_dilation_are_the_3x3_convs_in_both_halves(stride, dilation):
    block = with_random_weights(SplitBottleneck(6, 16, 10, 4, stride, dilation=dilation))
    state, x = block.state_dict(), normal(2, 6, 9, 8)
    low, high = (branch(x, state, suffix, stride=stride, dilation=dilation, padding=dilation) for suffix in ('_d', ''))
    with torch.no_grad():
        torch.testing.assert_close(block.merged(x), low + high)


@pytest.mark.parametrize(('stride', 'dilation'), [(1, 1), (2, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize('training', [False, True])
def test_two_halves_at_one_resolution_are_one_block(training, stride, dilation):
    halves = with_random_weights(SplitBottleneck(6, 16, 10, 4, stride, dilation=dilation))
    whole = SplitBottleneck(6, 16, 10, 4, stride, dilation=dilation, split=False).double()
    whole.load_state_dict(merge_halves(halves.state_dict()))
    x = normal(2, 6, 9, 8)
    torch.testing.assert_close(halves.train(training).merged(x), whole.train(training).merged(x))
    torch.testing.assert_close(merge_halves(halves.state_dict()), dict(whole.state_dict()))


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_halves_joined_and_cut_again_are_the_same(name):
    net = filled(name)
    state, whole = net.state_dict(), joined(net)
    again = halved(net, whole)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert not [name for name in whole if '_d.' in name]


def test_a_kept_branch_output_stays_as_it_was():
    kept = []
    block = with_random_weights(SplitBottleneck(6, 16, 10, 4, elastic=True))
    for conv in (block.conv3_d, block.conv3):
        conv.register_forward_hook(lambda _, __, output: kept.append((output, output.clone())))
    block.merged(normal(2, 6, 8, 8))
    assert len(kept) == 2
    assert all(torch.equal(output, copy) for output, copy in kept)


def test_elastic_needs_two_halves():
    with pytest.raises(ValueError, match='two halves'):
        SplitBottleneck(6, 16, 10, 4, split=False, elastic=True)


def test_se_layer_is_torchvisions():
    ours, theirs = with_random_weights(SELayer(64)), SqueezeExcitation(64, 4).double()
    theirs.load_state_dict({name.replace('conv', 'fc'): tensor for name, tensor in ours.state_dict().items()})
    x = normal(2, 64, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))
