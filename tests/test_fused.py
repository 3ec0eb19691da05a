"""Fused nets against the nets they are copies of; against the reference's numbers they are in test_models.py."""

import pytest
import torch
from torch import nn

from models.fused import Conv, folded, fused
from tests.nets import CLASSIFIERS, FAMILIES, every_net, filled, in_make_test, noise, on_meta
from tests.reference import load_weights

# Norms that follow a concatenation or a pooling: norm1 of each layer, one of each transition, the last.
BEHIND_NO_CONV = {'densenet201': 98 + 3 + 1, 'densenet201_elastic': 100 + 3 + 1}


@in_make_test(*FAMILIES)
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format], ids=['last', 'first'])
def test_float32_is_as_near_to_float64_as_the_net_itself_at_any_size(name, layout):
    net, x = filled(name, 7), noise(2, 3, 75, 50)
    before = {key: value.clone() for key, value in net.train().state_dict().items()}
    copied, images = fused(net).to(memory_format=layout), x.clone(memory_format=layout)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with torch.inference_mode():
        found, plain = copied(images), net.eval()(x)
        exact = net.double()(x.double())
    tolerance = 4 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (found - exact).abs().max() < tolerance < 0.5 * exact.std()
    assert torch.equal(images, x)


@every_net
def test_no_norm_that_can_be_folded_is_left(name):
    net = on_meta(name)
    left = [module for module in fused(net).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) == BEHIND_NO_CONV.get(name, 0)
    assert all(parameter.requires_grad for parameter in net.parameters()) or name.startswith('dla')


def test_bias_of_the_conv_is_scaled_with_it():
    conv, norm, x = nn.Conv2d(3, 4, 3), load_weights(nn.BatchNorm2d(4)).eval(), noise(1, 3, 5, 5)
    weight, bias = folded(conv, norm)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias), norm(conv(x)))
    torch.testing.assert_close(Conv(conv, norm, relu=True)(x), norm(conv(x)).relu())


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_bfloat16_is_near(name):
    net, x = filled(name, 7), noise(2, 3, 33, 40)
    with torch.inference_mode():
        wanted, found = net(x), fused(net).bfloat16()(x.bfloat16()).float()
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max() + 0.01
