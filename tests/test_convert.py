"""Nets of torchvision and timm made elastic: the same without scales, the paper's block with them, and how they run."""

import copy
import json
import shutil
import sys
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SEModule
from timm.models import dla, regnet, resnet
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck, ResNet

import classify
import docker_classify
import models
import multilabel_classify
from models.convert import elasticize
from models.converted import ConvertedBottleneck
from models.cost import count_macs, count_parameters
from models.fused import fused
from models.libraries import library_builder
from models.resnext import ResNeXt
from tests.conftest import SETS, Script
from tests.nets import assert_equals_eager, load_weights, noise
from tests.runs import assert_same, content
from tools import stress_test
from tools.branches import halved, joined
from tools.export import export
from tools.pretrained import load_net
from tools.scale_policy import __main__ as scale_policy
from utils import checkpoint

DEPTHS = [1, 2, 2, 2]


def torchvision_regnet(se_ratio=None):
    return RegNet(BlockParams(DEPTHS, [16, 24, 40, 48], [8] * 4, [1.0] * 4, [2] * 4, se_ratio), num_classes=5)


def timm_regnet(se_ratio=0.0):  # its stages have 2, 3, 5 and 8 groups
    own = regnet.RegNetCfg(depth=7, w0=16, wa=8, wm=1.6, group_size=8, se_ratio=se_ratio)
    return regnet.RegNet(own, num_classes=5)


timm_resnext = partial(resnet.ResNet, resnet.Bottleneck, DEPTHS, num_classes=5, cardinality=4, base_width=4)
FAMILIES = {  # as shallow and narrow as the libraries' builders allow
    'torchvision/resnext': lambda: ResNet(Bottleneck, DEPTHS, num_classes=5, groups=4, width_per_group=4),
    'torchvision/regnet_x': torchvision_regnet,
    'torchvision/regnet_y': lambda: torchvision_regnet(0.25),
    'timm/resnext': timm_resnext,
    'timm/seresnext': partial(timm_resnext, block_args={'attn_layer': 'se'}),
    'timm/regnetx': timm_regnet,
    'timm/regnety': lambda: timm_regnet(0.25),
    'timm/dlax': lambda: dla.DLA(
        [1, 1, 1, 2, 2, 1], [8, 8, 16, 32, 32, 64], cardinality=4, base_width=16, block=dla.DlaBottleneck, num_classes=5
    ),
}
REAL = [
    *(f'torchvision/{name}' for name in ('resnext50_32x4d', 'resnext101_32x8d', 'resnext101_64x4d')),
    *(f'torchvision/{name}' for name in ('regnet_x_400mf', 'regnet_x_3_2gf', 'regnet_y_400mf', 'regnet_y_3_2gf')),
    *(f'timm/{name}' for name in ('resnext50_32x4d', 'resnext50d_32x4d', 'seresnext50_32x4d', 'seresnext26d_32x4d')),
    *(f'timm/{name}' for name in ('regnetx_004', 'regnety_004', 'regnety_032', 'dla60x', 'dla46x_c', 'dla102x2')),
]
EVERY = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)]


def build(name):
    """In float64 and with weights by which every layer counts."""
    return load_weights((FAMILIES[name] if name in FAMILIES else models.classifiers[name])()).double().eval()


def converted(net):
    return {name: block for name, block in net.named_modules() if isinstance(block, ConvertedBottleneck)}


@pytest.mark.parametrize('name', EVERY)
def test_without_scales_nothing_changes_and_with_them_it_costs_less(name):
    net = build(name)
    whole, halves, elastic = net, elasticize(copy.deepcopy(net), scales=False), elasticize(copy.deepcopy(net))
    images = noise(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = whole(images)
        torch.testing.assert_close(halves(images), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
        assert not torch.allclose(elastic(images), expected)
        for made in whole, halves, elastic:
            torch.testing.assert_close(fused(made)(images), made(images), rtol=1e-9, atol=1e-9)
    assert count_parameters(elastic) == count_parameters(halves) == count_parameters(net)
    assert count_macs(elastic) < count_macs(halves) == count_macs(net)
    assert converted(halves).keys() == converted(elastic).keys()
    assert {block.elastic for block in converted(elastic).values()} == {True}
    assert {block.elastic for block in converted(halves).values()} == {False}
    again = elasticize(build(name))
    for value in again.state_dict().values():
        value.zero_()
    again.load_state_dict(elastic.state_dict())
    assert torch.equal(again(images), elastic(images))


@pytest.mark.parametrize('name', EVERY)
def test_gradients_reach_every_parameter_and_branches_are_what_a_block_sums(name):
    net, sums, seen = elasticize(build(name)), [], []
    images = noise(2, 3, 64, 64, dtype=torch.float64)
    net.train()(images).square().sum().backward()
    idle = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle
    for block in converted(net).values():
        block.bn3.register_forward_hook(lambda module, inputs, output: sums.append(inputs[0]))
        block.register_forward_hook(lambda module, inputs, output: seen.append((module, module.branches(inputs[0]))))
    with torch.no_grad():
        net.eval()(images)
    assert [block for block, _ in seen] == list(converted(net).values())
    for (_, (full, half)), total in zip(seen, sums, strict=True):
        torch.testing.assert_close(full + half, total)


@pytest.mark.parametrize(
    ('name', 'depths', 'cardinality', 'classes'),
    [
        ('torchvision/resnext', DEPTHS, 4, 5),
        pytest.param('torchvision/resnext50_32x4d', [3, 4, 6, 3], 32, 1000, marks=pytest.mark.slow),
    ],
)
def test_torchvisions_resnext_becomes_ours(name, depths, cardinality, classes):
    """Blocks of our ResNeXt with these depths, elastic in the same places, on the same weights."""
    theirs = elasticize(build(name))
    ours = ResNeXt(depths, classes, cardinality=cardinality, base_width=4, elastic=True).double().eval()
    ours.load_state_dict(halved(ours, joined(theirs)))  # ours cuts the others, too
    images = noise(2, 3, 65, 70, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-9, atol=1e-9)


def test_what_is_frozen_or_tested_stays_so_and_no_random_number_is_drawn():
    net, state = build('timm/regnety'), torch.get_rng_state()
    net.requires_grad_(False).s2.train()
    net.s2.b2.conv1.bn.momentum = 0.3
    elasticize(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.s2.modules())
    assert not any(module.training for module in net.s3.modules())
    assert (net.s2.b2.bn1.momentum, net.s2.b2.bn1_d.momentum, net.s2.b2.bn2.momentum) == (0.3, 0.3, 0.1)


def test_an_ungrouped_conv_is_cut_only_on_request():
    net = ResNet(Bottleneck, DEPTHS, num_classes=5).double().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r'^layer1\.0 of ResNet \(Bottleneck\): to cut its 3x3 convolution'):
        elasticize(net)
    assert_same(net.state_dict(), before)
    elasticize(net, ungrouped=True)
    assert torch.equal(net.layer2[1].conv2.weight, before['layer2.1.conv2.weight'][:64, :64])
    assert torch.equal(net.layer2[1].conv2_d.weight, before['layer2.1.conv2.weight'][64:, 64:])
    assert count_macs(net) < count_macs(ResNet(Bottleneck, DEPTHS, num_classes=5))


def test_stages_are_those_of_the_resolution():
    cases = (None, ['layer1.0', 'layer2.1', 'layer3.1']), ({1}, ['layer1.0']), ({2, 4}, ['layer2.1', 'layer4.1'])
    for stages, expected in cases:
        net = elasticize(build('timm/resnext'), stages)
        assert list(converted(net)) == expected
    with pytest.raises(ValueError, match='no bottleneck of stride 1'):
        elasticize(build('torchvision/regnet_x'), {1})


class Doubled(Bottleneck):
    """Of the parts of a bottleneck, but another function of them."""

    def forward(self, x):
        return super().forward(x) + x.mean()


def with_another_gate():
    """A fresh RegNetY, whose blocks begin as their shortcuts, with hard sigmoids."""
    net = timm_regnet(0.25)
    for module in net.modules():
        if isinstance(module, SEModule):
            module.gate = nn.Hardsigmoid()
    return net


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: torchvision_models.resnet18(), r'layer1\.0 of ResNet \(BasicBlock\): it is not made of convolutions'),
        (lambda: torchvision_models.mobilenet_v2(), r'features\.1 of MobileNetV2 .*: conv\.0\.2 is a ReLU6'),
        (lambda: torchvision_models.densenet121(), 'denselayer1 of DenseNet takes or gives more than one map'),
        (lambda: torchvision_models.vgg11(), 'VGG has no bottleneck of stride 1'),
        (lambda: timm.create_model('legacy_senet154', num_classes=2), r'Bottleneck\): .*several widths'),
        (lambda: timm.create_model('dla60_res2next'), r'DlaBottle2neck\): it is not made'),
        (lambda: timm.create_model('resnet18', in_chans=1), 'ResNet does not fit: '),
        (lambda: timm.create_model('regnetz_005'), r'of RegNet \(Bottleneck\): conv1\.bn\.act is a SiLU'),
        (lambda: ResNet(Doubled, DEPTHS, groups=4, width_per_group=4), r'layer1\.0 .*something else than a bottleneck'),
        (lambda: with_another_gate(), r's2\.b2 .*something else than a bottleneck'),
    ],
)
def test_a_net_that_does_not_fit_is_refused_by_its_first_block(make, message):
    with pytest.raises(ValueError, match=message):
        elasticize(make())


@pytest.mark.parametrize('script', [docker_classify, multilabel_classify], ids=lambda script: script.__name__)
def test_the_other_scripts_know_library_nets(script, tmp_path):
    last = 'coco_timm_regnety_002_elastic_' if script is multilabel_classify else ''
    data = SETS['multilabel_classify' if last else 'classify'](tmp_path / 'data')
    shared = '-a timm/regnety_002_elastic --image-size 32 -b 6 -g 1 -j 0 --device cpu --epochs 1 --output'
    Script(script, data, shared)(tmp_path / 'run')
    assert checkpoint.read(tmp_path / 'run' / f'{last}checkpoint.pth.tar').epoch == 1


ELASTIC = 'timm/dla46x_c_elastic', 'torchvision/regnet_y_400mf_elastic', 'torchvision/resnext50_32x4d_elastic'


@pytest.mark.parametrize(
    'arch', ['timm/regnety_002_elastic', *(pytest.param(name, marks=pytest.mark.slow) for name in ELASTIC)]
)
def test_a_library_net_is_trained_resumed_bit_for_bit_and_tested(arch, folder, tmp_path, capsys):
    script = Script(classify, folder, f'-a {arch} --image-size 32 -b 12 -g 1 -j 0 --device cpu')
    name = f'{arch.replace("/", "_")}_checkpoint.pth.tar'
    script('--epochs', 2, '--output', tmp_path / 'a')
    script('--epochs', 1, '--output', tmp_path / 'b')
    script('--epochs', 2, '--output', tmp_path / 'b', '--auto-resume')
    assert_same(*(content(tmp_path / run, name) for run in 'ab'))
    assert checkpoint.read(tmp_path / 'a' / name).arch == arch
    capsys.readouterr()
    script('--evaluate', '--resume', tmp_path / 'a' / name)
    error = capsys.readouterr().out.split(' * Err@1 ')[1].split()[0]
    stress = Script(stress_test, tmp_path / 'a' / name, f'{folder} --image-size 32 --factors 1 --device cpu')
    stress('--out', tmp_path / 'stress.png')
    assert f'{float(error):.2f}' in capsys.readouterr().out
    pictures = folder / 'val', '--image-size', 32, '--device', 'cpu', '--out', tmp_path / 'policy.png'
    Script(scale_policy, tmp_path / 'a' / name)(*pictures)
    assert len(json.loads((tmp_path / 'policy.json').read_text())['blocks']) >= 3
    net, _ = load_net(checkpoint.read(tmp_path / 'a' / name))
    assert_equals_eager(export(net, tmp_path / 'net.pt2', 32), net, 32)


def test_weights_of_the_library_are_taken_before_the_net_is_cut(folder, tmp_path, capsys):
    """Of as many classes all of them, else all but the head's; they can be tested as they are."""
    torch.manual_seed(3)
    net = timm.create_model('regnety_002', num_classes=6)
    torch.save(net.state_dict(), tmp_path / 'library.pth')
    save_file(net.state_dict(), tmp_path / 'library.safetensors')
    script = Script(classify, folder, '-a timm/regnety_002 --image-size 32 --device cpu')
    for suffix in 'pth', 'safetensors':
        script('--evaluate', '--pretrained', tmp_path / f'library.{suffix}')
    first, second = capsys.readouterr().out.split(' * Err@1')[1:]
    assert first.split('\n')[0] == second.split('\n')[0]
    given = '--pretrained', tmp_path / 'library.pth'
    assert '--pretrained and --resume' in script.error(capsys, *given, '--resume', 'x.pth')
    shutil.rmtree(folder / 'val' / 'fox')
    assert 'its head.fc is not of 5 classes' in script.error(capsys, *given, '--evaluate')
    shutil.rmtree(folder / 'train' / 'fox')
    script(*given, '--epochs', 0, '-b', 4, '-g', 1, '--output', tmp_path / 'run')
    assert f'=> left out of {tmp_path}/library.pth, as initialised: head.fc' in capsys.readouterr().out
    state = net.state_dict()
    for classes, fits in (6, True), (5, False):
        own = models.build_classifier('timm/regnety_002', classes, weights=state)
        assert torch.equal(own.s1.b1.conv1.conv.weight, net.s1.b1.conv1.conv.weight)
        assert own.head_names == ('head.fc',) and (own.head.fc.weight.shape[0] == 6) == fits
    elastic = models.build_classifier('timm/regnety_002_elastic', 6, weights=state)
    assert torch.equal(elastic.s3.b2.conv1.weight, net.s3.b2.conv1.conv.weight[: len(elastic.s3.b2.conv1.weight)])
    del state['s1.b1.conv1.conv.weight']
    torch.save(state, tmp_path / 'library.pth')
    assert 's1.b1.conv1.conv.weight' in script.error(capsys, *given, '--evaluate')
    assert '--pretrained is for nets of libraries' in script.error(capsys, *given, '-a', 'resnext50')


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('torchvision/nothing', 'torchvision has no net nothing'),
        ('elsewhere/resnet50', 'there is no classifier elsewhere/resnet50'),
        ('torchvision/alexnet', '--arch torchvision/alexnet takes no pictures of 32 pixels: Given input size'),
        ('timm/dpn68_elastic', '--arch timm/dpn68_elastic: features.conv2_1 of DPN (DualPathBlock): '),
        ('timm/resnet50_elastic', '--arch timm/resnet50_elastic: layer1.0 of ResNet (Bottleneck): to cut'),
    ],
)
def test_names_that_cannot_be_built(arch, message, folder, capsys):
    assert message in Script(classify, folder, '--image-size 32').error(capsys, '-a', arch)


@pytest.mark.parametrize('name', ['torchvision/regnet_y_400mf_elastic', 'timm/regnety_002_elastic'])
def test_a_net_is_built_without_memory_where_only_its_shapes_matter(name):
    build = models.classifiers[name]
    assert count_macs(build) == count_macs(build()) < count_macs(models.classifiers[name.removesuffix('_elastic')])


def test_without_timm_one_line_says_so(monkeypatch, folder, capsys):
    monkeypatch.setitem(sys.modules, 'timm', None)
    library_builder.cache_clear()  # which another test may have filled
    assert 'which is not installed: pip install timm' in Script(classify, folder).error(capsys, '-a', 'timm/dla60x')
