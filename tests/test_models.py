"""Every net against the reference's names, shapes and numbers, and in other layouts, sizes and precisions."""

import pytest
import torch
from torch import nn

import models
from tests import reference
from tests.nets import CLASSIFIERS, FAMILIES, NETS, filled, in_make_test, noise, on_meta, recomputing
from utils.cost import count_macs, count_parameters

# name: (parameters, GMACs at 224); DLA without the projections that nothing uses
COST = {
    'resnext50': (25_028_904, 4.230),
    'resnext50_elastic': (25_246_504, 4.177),
    'resnext101': (44_177_704, 7.970),
    'resnext101_elastic': (44_265_256, 7.889),
    'se_resnext50': (27_559_896, 4.233),
    'se_resnext50_elastic': (27_803_976, 4.179),
    'dla60x': (17_649_816, 3.517),
    'dla60x_elastic': (17_649_816, 3.033),
    'dla102x': (26_772_120, 5.848),
    'dla102x_elastic': (24_917_144, 5.818),
    'densenet201': (20_013_928, 4.291),
    'densenet201_elastic': (19_482_824, 4.266),
}
every_net = pytest.mark.parametrize('name', NETS)


def names_and_shapes(net: nn.Module) -> list:
    return [[name, list(tensor.shape)] for name, tensor in net.state_dict().items()]


@every_net
def test_outputs_and_a_training_step_are_the_references(name):
    net = filled(name, dtype=torch.float64, **recomputing(name))
    reference.assert_evaluates(net, name)
    reference.assert_trains(net, name)


def test_the_registries_are_the_references():
    assert list(models.classifiers) == list(COST)
    assert set(NETS) == set(reference.load('state_dicts')) == set(reference.load('golden'))
    assert set(reference.load('golden_sizes')) < set(NETS)
    assert all(getattr(models, name) is builder for name, builder in models.classifiers.items())


@every_net
def test_state_dict_has_the_references_names_shapes_and_order(name):
    expected, net = reference.load('state_dicts')[name], on_meta(name, num_classes=7)
    assert names_and_shapes(on_meta(name)) == expected
    changed = [pair for pair, other in zip(names_and_shapes(net), expected, strict=True) if pair != other]
    assert {name.partition('.')[0] for name, _ in changed} <= {*net.heads, 'up'}
    assert {shape[0] for _, shape in changed} == {7}


def test_no_builder_changes_what_another_builds():
    on_meta('dla102x_elastic')
    assert names_and_shapes(on_meta('dla60x_elastic')) == reference.load('state_dicts')['dla60x_elastic']


@pytest.mark.parametrize('name', models.classifiers)
def test_cost(name):
    net = on_meta(name)
    parameters, gmacs = COST[name]
    assert count_parameters(net) == parameters
    assert count_macs(net) / 1e9 == pytest.approx(gmacs, abs=5e-4)


@in_make_test(*FAMILIES)
def test_any_size_and_either_layout(name):
    net = filled(name, num_classes=5)
    for size in ((33, 47), (64, 64), (75, 50)):
        x = noise(2, 3, *size)
        with torch.inference_mode():
            output = net.to(memory_format=torch.contiguous_format)(x)
            again = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert output.shape in ((2, 5), (2, 5, *size))
        assert output.isfinite().all()
        torch.testing.assert_close(again, output, rtol=0, atol=1e-5 * output.abs().max().item())


@pytest.mark.parametrize('name', CLASSIFIERS)
@pytest.mark.parametrize('training', [False, True])
def test_bf16_autocast_is_close_and_trains(name, training):
    net, x = filled(name, 5).train(training), noise(2, 3, 75, 64)
    expected = net(x)
    with torch.autocast('cpu', torch.bfloat16):
        output = net(x)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize('build', [models.build_classifier, models.build_segmenter])
def test_unknown_name_lists_the_known_ones(build):
    kind = build.__name__.removeprefix('build_')
    with pytest.raises(ValueError, match=f"unknown {kind} 'resnet18'") as error:
        build('resnet18')
    assert all(name in str(error.value) for name in getattr(models, f'{kind}s'))
