"""Every net against the numbers of the reference; in other sizes and precisions; fused, recomputed, compiled; cost."""

import copy
import pickle
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import models
from models.cost import count_macs, count_parameters
from models.fused import Conv, fused
from models.recompute import RecomputedSequential, frozen_statistics
from tests.nets import CLASSIFIERS, FAMILIES, NETS, assert_equal, filled, in_make_test, noise, on_meta, recomputing
from tools.check_gpu.golden import evaluation_errors, load, load_weights, training_errors
from tools.check_gpu.result import distance
from tools.check_gpu.ways import SIDE, trained
from utils.device import Compute
from utils.step import Evaluator

# Of norms that follow a concatenation or a pooling, DenseNets have one in each layer, one in each transition, the last.
LAYERS = {'densenet': 4, 'densenet_elastic': 5, 'densenet201': 98, 'densenet201_elastic': 100}
every_net = pytest.mark.parametrize('name', load('state_dicts'))  # with recorded numbers


def names_and_shapes(net: nn.Module) -> list:
    return [[name, list(tensor.shape)] for name, tensor in net.state_dict().items()]


def recomputes(net: nn.Module) -> bool:
    """Whether activations are recomputed: a segmenter's, or those of a DenseNet's first block."""
    return getattr(net, 'checkpoint_activations', any(isinstance(part, RecomputedSequential) for part in net.modules()))


@every_net
def test_outputs_and_a_training_step_are_the_references(name):
    net = filled(name, dtype=torch.float64, **recomputing(name))
    assert_equal(evaluation_errors(net, name))
    assert_equal(training_errors(net, name))


@pytest.mark.parametrize('name', ['resnext50_elastic', 'dla60x_elastic'])
def test_so_they_are_with_the_joint_sums_of_gpus(name, monkeypatch):
    for module in 'elastic', 'fused':
        monkeypatch.setattr(f'models.{module}.waits_for_memory', lambda x: True)
    test_outputs_and_a_training_step_are_the_references(name)


def test_the_registries_hold_the_references_nets():
    assert load('golden_sizes').keys() < load('golden').keys() == load('state_dicts').keys() <= NETS.keys()
    assert all(getattr(models, name) is builder for name, builder in models.classifiers.items())


@every_net
def test_state_dict_has_the_references_names_shapes_and_order(name):
    """Whatever was built before; another number of classes changes the heads alone."""
    on_meta('dla102x_elastic', num_classes=5)
    expected, net = load('state_dicts')[name], on_meta(name)
    assert names_and_shapes(net) == expected
    other = on_meta(name, num_classes=7, **recomputing(name))
    changed = [pair for pair, before in zip(names_and_shapes(other), expected, strict=True) if pair != before]
    assert {name.partition('.')[0] for name, _ in changed} <= {*net.head_names, 'up'}
    assert {shape[0] for _, shape in changed} == {7}
    assert [recomputes(net), recomputes(other)] == [False, name == 'densenet201' or name.endswith('/seg')]


@pytest.mark.parametrize('build', [models.build_classifier, models.build_segmenter])
def test_unknown_name_lists_the_known_ones(build):
    kind = build.__name__.removeprefix('build_')
    with pytest.raises(ValueError, match=f"unknown {kind} 'resnet18'") as error:
        build('resnet18')
    assert all(name in str(error.value) for name in getattr(models, f'{kind}s'))


@in_make_test(*FAMILIES)
def test_any_size_in_either_layout_and_fused(name):
    """In float32 fused copies are as near to float64 as the net itself, in which nothing changes; in bfloat16 near."""
    plain, exact, trained = filled(name, 7), filled(name, 7, dtype=torch.float64), filled(name, 7).train()
    for size in (33, 47), (64, 64), (75, 50):
        x, outputs = noise(2, 3, *size), []
        with torch.inference_mode():
            expected = exact(x.double())
            for layout in torch.contiguous_format, torch.channels_last:
                images, copied = x.clone(memory_format=layout), fused(trained).to(memory_format=layout)
                outputs += [plain.to(memory_format=layout)(images), copied(images)]
                assert torch.equal(images, x)
            rounded = fused(trained).bfloat16()(x.bfloat16()).float()
        assert (rounded - expected).abs().max() < 0.03 * expected.abs().max()
        tolerance = 4 * (outputs[0] - expected).abs().max() + 1e-6 * expected.abs().max()
        assert expected.shape in ((2, 7), (2, 7, *size))
        assert tolerance < 0.5 * expected.std()
        assert all((output - expected).abs().max() < tolerance for output in outputs[1::2])
        torch.testing.assert_close(outputs[2], outputs[0], rtol=0, atol=1e-5 * outputs[0].abs().max().item())
    left = [module for module in copied.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) == (LAYERS[name] + 3 + 1 if name in LAYERS else 0)
    assert trained.training
    torch.testing.assert_close(dict(trained.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    assert [p.requires_grad for p in trained.parameters()] == [p.requires_grad for p in plain.parameters()]


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


def test_a_fused_sequence_keeps_names_and_scales_biases():
    """Nets of timm call layers of a sequence by name."""
    first = {'conv': nn.Conv2d(3, 4, 3), 'norm': load_weights(nn.BatchNorm2d(4)), 'relu': nn.ReLU()}
    net = nn.Sequential(OrderedDict(first, last=nn.Conv2d(4, 2, 1), pool=nn.AvgPool2d(2))).eval()
    copied, x = fused(net), noise(1, 3, 6, 6)
    torch.testing.assert_close(copied(x), net(x))
    assert [name for name, _ in copied.named_children()] == ['conv', 'norm', 'relu', 'last', 'pool']
    assert list(map(type, copied)) == [Conv, nn.Identity, nn.Identity, nn.AvgPool2d, nn.Conv2d]


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
    """So that the nets of full size are compared with the reference in one way only, recomputed."""
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


# Compiled


def takes_any_number(traced):
    inputs = [node.meta['example_value'] for node in traced.graph.nodes if node.op == 'placeholder']
    shapes = [value.shape for value in inputs if isinstance(value, torch.Tensor)]
    return any(isinstance(shape[0], torch.SymInt) for shape in shapes if shape)


@in_make_test('resnext', 'dla', 'densenet_elastic')
def test_nets_are_compiled_once_for_training_and_once_for_any_number_of_images_to_test(name, monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('aot_eager')  # it runs as it was traced
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    build = partial(filled, name, num_classes=9, dtype=torch.float64, **recomputing(name))
    steps = (trained(torch.device('cpu'), build(), compile=compiled) for compiled in (False, True))
    for expected, found in zip(*(step.values() for step in steps), strict=True):
        assert distance(found, expected) < 1e-8
    model, compute, image = build(), Compute('cpu', compile=True), noise(1, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.inference_mode():  # the copy, fused and compiled, in float32
        expected, tester = model(image).float(), Evaluator(model, compute)
        atol = 1e-5 * expected.abs().max().item()
        for number in 4, 3, 2:  # filled up to 4
            outputs = tester.load()(image.repeat(number, 1, 1, 1))
            torch.testing.assert_close(outputs, expected.expand_as(outputs), rtol=1e-4, atol=atol)
        for number in 2, 3:  # of another size, of which there may be many
            tester.load()(noise(number, 3, SIDE + 8, SIDE + 8))
    assert [takes_any_number(traced) for traced in counter.graphs] == [False, False, True]


# What a net costs, counted from outside


@pytest.mark.parametrize(('size', 'pixels'), [(16, 8 * 8), ((16, 30), 8 * 15), ((15, 9), 8 * 5)])
def test_macs_by_hand(size, pixels):
    first, second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
    body = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(inplace=True), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(OrderedDict(body=body, fc=nn.Linear(8, 5)))
    conv, grouped, fc = pixels * 3 * 8 * 9, pixels * 2 * 8 * 9, 8 * 5
    assert count_macs(net, size) == conv + grouped + fc
    assert count_parameters(net) == (3 * 8 * 9 + 8) + 2 * 8 + (2 * 8 * 9 + 8) + (8 * 5 + 5)


def test_a_builder_costs_what_its_net_does_without_what_is_recomputed():
    build = FAMILIES['densenet']
    assert count_macs(build(checkpoint_activations=True), 64) == count_macs(build, 64)
    assert count_macs(nn.ReLU()) == 0


@pytest.mark.parametrize('training', [False, True])
def test_counting_leaves_nothing_on_the_net(training):
    """Neither values nor attributes, hooks among them, are others; and the tensors are the same objects."""
    net = FAMILIES['resnext'](5).train(training)
    before, tensors = pickle.dumps(net), [*net.parameters(), *net.buffers()]
    assert count_macs(net, 64)
    assert pickle.dumps(net) == before
    assert [id(tensor) for tensor in (*net.parameters(), *net.buffers())] == list(map(id, tensors))
    assert all(parameter.grad is None for parameter in net.parameters())
