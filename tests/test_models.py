"""Every classifier against the reference's names, shapes and numbers."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models.densenet import DenseNet
from models.dla import DLA
from models.resnext import ResNeXt
from tests import reference
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
every_name = pytest.mark.parametrize('name', models.classifiers)

# One of each family at two scales, small enough to run in every way
SMALL = {
    'resnext': partial(ResNeXt, (2, 2, 2, 1), 5, se=True, elastic=True),
    'dla': partial(DLA, (1, 1, 1, 2, 1, 1), 5, elastic=True, residual_root=True),
    'densenet': partial(DenseNet, (2, 2, 2, 2), 5, elastic=True),
}
every_small_net = pytest.mark.parametrize('build', SMALL.values(), ids=SMALL.keys())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def on_meta(name: str, **kwargs) -> nn.Module:
    with torch.device('meta'):
        return models.build_classifier(name, **kwargs)


def names_and_shapes(net: nn.Module) -> list:
    return [[name, list(tensor.shape)] for name, tensor in net.state_dict().items()]


class Recording:
    """One net's run in eval mode, then one training step, in float64 from the recorded weights."""

    def __init__(self, name: str):
        self.golden = reference.load('golden')[name]
        self.net = reference.load_weights(models.build_classifier(name).double())
        seed = self.golden['input']['seed']
        x = reference.images(**self.golden['input'])
        with torch.no_grad():
            self.eval_output = self.net.eval()(x)
        self.train_output = self.net.train()(x)
        self.loss = F.cross_entropy(self.train_output, torch.tensor([seed % 1000, (seed * 7 + 3) % 1000]))
        self.loss.backward()


@pytest.fixture(scope='module', params=models.classifiers)
def recording(request) -> Recording:
    return Recording(request.param)


def test_eval_output_is_the_references(recording):
    reference.assert_output(recording.eval_output, recording.golden['eval'])


def test_train_output_and_loss_are_the_references(recording):
    reference.assert_output(recording.train_output, recording.golden['train']['output'])
    assert recording.loss.item() == pytest.approx(recording.golden['train']['loss'], rel=reference.TOLERANCE)


def test_gradients_are_the_references(recording):
    gradients = {name: p.grad for name, p in recording.net.named_parameters() if p.grad is not None}
    reference.assert_norms(gradients, recording.golden['train']['grad_norms'], floor=1e-4)
    assert all(gradient.any() for gradient in gradients.values())


def test_parameters_without_gradient_are_the_references(recording):
    without = {name for name, p in recording.net.named_parameters() if p.grad is None}
    assert without == set(recording.golden['train']['no_gradient'])


def test_running_statistics_are_the_references(recording):
    unused = {name.rpartition('.')[0] for name in recording.golden['train']['no_gradient']}
    statistics = {
        name: buffer
        for name, buffer in recording.net.named_buffers()
        if name.rpartition('.')[0] not in unused and not name.endswith('num_batches_tracked')
    }
    reference.assert_norms(statistics, recording.golden['train']['running_norms'])


def test_batch_norms_count_one_update_a_step(recording):
    unused = {name.rpartition('.')[0] for name in recording.golden['train']['no_gradient']}
    assert {
        buffer.item()
        for name, buffer in recording.net.named_buffers()
        if name.endswith('num_batches_tracked') and name.rpartition('.')[0] not in unused
    } == {1}


@pytest.mark.parametrize('name', [name for name in reference.load('golden_sizes') if '/' not in name])
def test_output_at_odd_maps_is_the_references(name):
    recorded = reference.load('golden_sizes')[name]
    net = reference.load_weights(models.build_classifier(name).double()).eval()
    with torch.no_grad():
        reference.assert_output(net(reference.images(**recorded['input'])), recorded['eval'])


def test_the_registry_is_the_references():
    assert list(models.classifiers) == list(COST)
    assert set(models.classifiers) == {name for name in reference.load('state_dicts') if '/' not in name}
    assert all(getattr(models, name) is builder for name, builder in models.classifiers.items())


@every_name
def test_state_dict_has_the_references_names_shapes_and_order(name):
    assert names_and_shapes(on_meta(name)) == reference.load('state_dicts')[name]


@every_name
def test_cost(name):
    net = on_meta(name)
    parameters, gmacs = COST[name]
    assert count_parameters(net) == parameters
    assert count_macs(net) / 1e9 == pytest.approx(gmacs, abs=5e-4)


@every_name
def test_head_is_the_only_part_that_depends_on_the_classes(name):
    few, many = (dict(names_and_shapes(on_meta(name, num_classes=n))) for n in (7, 1000))
    (head,) = on_meta(name).heads
    assert {key for key in many if few[key] != many[key]} == {f'{head}.weight', f'{head}.bias'}
    assert few[f'{head}.bias'] == [7]


@every_name
def test_any_size(name):
    net = reference.load_weights(models.build_classifier(name, num_classes=5)).eval()
    for size in ((33, 47), (64, 64), (75, 50)):
        with torch.no_grad():
            output = net(noise(2, 3, *size))
        assert output.shape == (2, 5)
        assert output.isfinite().all()


@every_small_net
def test_channels_last_gives_the_same(build):
    net = reference.load_weights(build()).eval()
    expected = net(noise(2, 3, 75, 64))
    output = net.to(memory_format=torch.channels_last)(noise(2, 3, 75, 64).to(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@every_small_net
@pytest.mark.parametrize('training', [False, True])
def test_bf16_autocast_is_close_and_trains(build, training):
    net = reference.load_weights(build()).train(training)
    expected = net(noise(2, 3, 75, 64))
    with torch.autocast('cpu', torch.bfloat16):
        output = net(noise(2, 3, 75, 64))
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters() if p.grad is not None)


@every_small_net
def test_compiles_without_a_graph_break(build):
    eager = reference.load_weights(build().double())
    compiled = torch.compile(reference.load_weights(build().double()), backend='eager', fullgraph=True)
    x = noise(2, 3, 75, 64).double()
    torch.testing.assert_close(compiled(x), eager(x))


def test_no_builder_changes_what_another_builds():
    before = {name: names_and_shapes(on_meta(name)) for name in ('dla102x', 'dla60x', 'dla60x_elastic')}
    on_meta('dla102x_elastic')
    assert {name: names_and_shapes(on_meta(name)) for name in before} == before
    assert before['dla60x_elastic'] == reference.load('state_dicts')['dla60x_elastic']


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match='resnet18') as error:
        models.build_classifier('resnet18')
    assert all(name in str(error.value) for name in models.classifiers)
