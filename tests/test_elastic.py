"""The Elastic operation against plain, independent computations, halves joined again, and where the nets apply it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnext50_32x4d
from torchvision.ops import SqueezeExcitation

import models
from models.dla import DLA
from models.elastic import Split, SplitBottleneck, down, up
from models.halves import halved, joined
from models.resnext import SELayer
from tests import reference

SIZES = [(8, 8), (7, 8), (8, 5), (5, 7), (1, 1), (1, 4)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_random_weights(module: nn.Module) -> nn.Module:
    return reference.load_weights(module.double()).eval()


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


@pytest.mark.parametrize('arch', models.classifiers)
def test_halves_joined_and_cut_again_are_the_same(arch):
    net = models.build_classifier(arch)
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


def test_plain_resnext_is_torchvisions():
    ours = with_random_weights(models.resnext50())
    theirs = resnext50_32x4d(weights=None).double().eval()
    theirs.load_state_dict(merge_halves(ours.state_dict()))
    x = normal(1, 3, 97, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_se_layer_is_torchvisions():
    ours, theirs = with_random_weights(SELayer(64)), SqueezeExcitation(64, 4).double()
    theirs.load_state_dict({name.replace('conv', 'fc'): tensor for name, tensor in ours.state_dict().items()})
    x = normal(2, 64, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def elastic_blocks(name: str) -> list[tuple[bool, bool]]:
    with torch.device('meta'):
        net = models.build_classifier(name)
    return [(block.split, block.elastic) for block in net.modules() if isinstance(block, Split)]


@pytest.mark.parametrize(
    ('name', 'blocks', 'elastic'),
    [
        ('resnext50', 16, 0),
        ('resnext50_elastic', 22, 5 + 1 + 7 + 4),
        ('se_resnext50_elastic', 22, 5 + 1 + 7 + 4),
        ('resnext101', 33, 0),
        ('resnext101_elastic', 49, 11 + 1 + 13 + 19),
        ('dla60x_elastic', 16, 1 + 3 + 7),
        ('dla102x_elastic', 26, 7 + 7 + 7),
        ('densenet201_elastic', 100, 70),
    ],
)
def test_where_the_nets_are_elastic(name, blocks, elastic):
    found = elastic_blocks(name)
    assert all(split for split, _ in found)
    assert (len(found), sum(at_two_scales for _, at_two_scales in found)) == (blocks, elastic)


@pytest.mark.parametrize('name', ['dla60x', 'dla102x', 'densenet201'])
def test_plain_dla_and_densenet_are_not_split(name):
    assert set(elastic_blocks(name)) == {(False, False)}


@pytest.mark.parametrize('size', [(33, 46), (66, 70)])
def test_dla_pools_odd_maps_in_ceil_mode(size):
    inputs = {}
    net = with_random_weights(DLA((1, 1, 1, 1, 1, 1), num_classes=5))
    for name, level in (('level2', net.level2), ('level3', net.level3)):
        level.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    net.level3.root.register_forward_pre_hook(lambda _, args: inputs.update(bottom=args[-1]))
    with torch.no_grad():
        net(normal(1, 3, *size))
    height, width = inputs['level3'].shape[2:]
    replicated = F.pad(inputs['level3'], (0, width % 2, 0, height % 2), mode='replicate')
    assert height % 2 or width % 2
    assert torch.equal(inputs['bottom'], F.max_pool2d(replicated, 2))
