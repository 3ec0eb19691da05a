"""Fused nets against the reference's numbers and against the nets they are copies of."""

import pytest
import torch
from torch import nn

import models
from models.fused import Conv, folded, fused
from tests import reference

EVERY = [(models.build_classifier, name, name) for name in models.classifiers]
EVERY += [(models.build_segmenter, name, f'{name}/seg') for name in models.segmenters]
# Norms that follow a concatenation or a pooling: norm1 of each layer, one of each transition, the last.
BEHIND_NO_CONV = {'densenet201': 98 + 3 + 1, 'densenet201_elastic': 100 + 3 + 1}
every_net = pytest.mark.parametrize('build, name, key', EVERY, ids=[key for *_, key in EVERY])


@every_net
def test_outputs_are_the_references(build, name, key):
    golden = reference.load('golden')[key]
    net = fused(reference.load_weights(build(name).double()))
    with torch.inference_mode():
        reference.assert_output(net(reference.images(**golden['input'])), golden['eval'])


def unsettled(net):
    """The net with running statistics and norms that would be noticed if they were left out."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return net.eval()


@every_net
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format], ids=['last', 'first'])
def test_float32_on_a_cpu_is_as_near_to_float64_as_the_net_itself_at_any_size(build, name, key, layout):
    torch.manual_seed(0)
    net = unsettled(build(name, 7)).to(memory_format=layout)
    x = torch.randn(2, 3, 75, 50).to(memory_format=layout)
    before = x.clone()
    with torch.inference_mode():
        plain, found = net(x), fused(net)(x)
        exact = net.double()(x.double())
    tolerance = 4 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (found - exact).abs().max() < tolerance < 0.5 * exact.std()
    assert torch.equal(x, before)


@every_net
def test_net_stays_as_it_is_and_no_norm_that_can_be_folded_is_left(build, name, key):
    net = build(name).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    copied = fused(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters()) or name.startswith('dla')
    left = [module for module in copied.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) == BEHIND_NO_CONV.get(name, 0)


def test_bias_of_the_conv_is_scaled_with_it():
    conv, norm, x = nn.Conv2d(3, 4, 3), unsettled(nn.Sequential(nn.BatchNorm2d(4)))[0], torch.randn(1, 3, 5, 5)
    weight, bias = folded(conv, norm)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias), norm(conv(x)))
    torch.testing.assert_close(Conv(conv, norm, relu=True)(x), norm(conv(x)).relu())


@pytest.mark.parametrize('name', ['resnext50_elastic', 'dla60x_elastic', 'densenet201_elastic'])
def test_bfloat16_is_near(name):
    torch.manual_seed(0)
    net = models.build_classifier(name, 7).eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        wanted, found = net(x), fused(net).bfloat16()(x.bfloat16()).float()
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max() + 0.01
