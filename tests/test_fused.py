"""Fused nets against the nets they are copies of; against the reference's numbers they are in test_models.py."""

import copy

import pytest
import torch
from torch import nn

from models.fused import Conv, folded, fused
from tests.nets import CLASSIFIERS, FAMILIES, filled, in_make_test, noise
from tests.reference import load_weights

# Of norms that follow a concatenation or a pooling, DenseNets have one in each layer, one in each transition, the last.
LAYERS = {'densenet': 4, 'densenet_elastic': 5, 'densenet201': 98, 'densenet201_elastic': 100}


@in_make_test(*FAMILIES)
def test_float32_is_as_near_to_float64_as_the_net_itself_at_any_size(name):
    net, x = filled(name, 7), noise(2, 3, 75, 50)
    before, outputs = copy.deepcopy(net.train()), []
    for layout in torch.channels_last, torch.contiguous_format:
        copied, images = fused(net).to(memory_format=layout), x.clone(memory_format=layout)
        with torch.inference_mode():
            outputs.append(copied(images))
        assert torch.equal(images, x)
        left = [module for module in copied.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(left) == (LAYERS[name] + 3 + 1 if name in LAYERS else 0)
    assert net.training
    torch.testing.assert_close(dict(net.state_dict()), dict(before.state_dict()), rtol=0, atol=0)
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    with torch.inference_mode():
        plain, exact = net.eval()(x), net.double()(x.double())
    tolerance = 4 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()
    assert all((output - exact).abs().max() < tolerance for output in outputs)
    assert tolerance < 0.5 * exact.std()


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
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()
