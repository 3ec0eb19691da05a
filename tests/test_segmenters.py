"""The segmenters against the reference's names, shapes and numbers, with and without recomputed activations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models.dla_up import bilinear_up
from tests import reference

every_name = pytest.mark.parametrize('name', models.segmenters)


def on_meta(name: str, **kwargs) -> nn.Module:
    with torch.device('meta'):
        return models.build_segmenter(name, **kwargs)


def targets(seed: int, shape: list[int]) -> torch.Tensor:
    """The recorded targets, its first five rows ignored."""
    values = np.random.RandomState(seed + 1).randint(0, 21, shape)
    values[:, :5] = 255
    return torch.from_numpy(values)


class Recording:
    """One net's run in eval mode, then one training step, in float64 from the recorded weights."""

    def __init__(self, name: str, checkpoint_activations: bool):
        self.golden = reference.load('golden')[f'{name}/seg']
        net = models.build_segmenter(name, checkpoint_activations=checkpoint_activations).double()
        self.net = reference.load_weights(net)
        x = reference.images(**self.golden['input'])
        with torch.no_grad():
            self.eval_output = self.net.eval()(x)
        self.train_output = self.net.train()(x)
        wanted = targets(self.golden['input']['seed'], [len(x), *self.train_output.shape[-2:]])
        self.loss = F.cross_entropy(self.train_output, wanted, ignore_index=255)
        self.loss.backward()


@pytest.fixture(scope='module', params=[(name, on) for name in models.segmenters for on in (False, True)], ids=str)
def recording(request) -> Recording:
    return Recording(*request.param)


def test_outputs_and_loss_are_the_references(recording):
    reference.assert_output(recording.eval_output, recording.golden['eval'])
    reference.assert_output(recording.train_output, recording.golden['train']['output'])
    assert recording.loss.item() == pytest.approx(recording.golden['train']['loss'], rel=reference.TOLERANCE)


def test_gradients_are_the_references(recording):
    gradients = {name: p.grad for name, p in recording.net.named_parameters() if p.grad is not None}
    reference.assert_norms(gradients, recording.golden['train']['grad_norms'], floor=1e-4)
    without = {name for name, p in recording.net.named_parameters() if p.grad is None}
    assert without == set(recording.golden['train']['no_gradient'])


def test_running_statistics_are_the_references_in_one_update(recording):
    unused = {name.rpartition('.')[0] for name in recording.golden['train']['no_gradient']}
    buffers = {name: b for name, b in recording.net.named_buffers() if name.rpartition('.')[0] not in unused}
    counters = {name: buffers.pop(name) for name in list(buffers) if name.endswith('num_batches_tracked')}
    reference.assert_norms(buffers, recording.golden['train']['running_norms'])
    assert {counter.item() for counter in counters.values()} == {1}


@pytest.mark.parametrize('name', [name for name in reference.load('golden_sizes') if name.endswith('/seg')])
def test_output_at_other_sizes_is_the_references(name):
    recorded = reference.load('golden_sizes')[name]
    net = reference.load_weights(models.build_segmenter(name.removesuffix('/seg')).double()).eval()
    with torch.no_grad():
        reference.assert_output(net(reference.images(**recorded['input'])), recorded['eval'])


@every_name
def test_state_dict_has_the_references_names_shapes_and_order(name):
    state = on_meta(name).state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == reference.load('state_dicts')[f'{name}/seg']


@every_name
@pytest.mark.parametrize('size', [(33, 47), (64, 48), (65, 90)])
def test_any_size(name, size):
    net = reference.load_weights(models.build_segmenter(name, num_classes=5)).eval()
    with torch.no_grad():
        output = net(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (1, 5, *size)
    assert output.isfinite().all()


def test_dilations_are_the_papers():
    net = on_meta('resnext50_elastic')
    assert [(b.conv2.dilation, b.conv2.stride, b.conv2_d.dilation, b.elastic) for b in net.layer4] == [
        ((d, d), (1, 1), (d, d), False) for d in (2, 4, 8)
    ]
    convs = [net.aspp.get_submodule(f'aspp{place}') for place in range(1, 6)]
    assert [conv.dilation[0] for conv in convs] == [1, 6, 12, 18, 1]
    assert [conv.kernel_size[0] for conv in convs] == [1, 3, 3, 3, 1]


def test_dla_gives_log_probabilities():
    net = reference.load_weights(models.build_segmenter('dla60x')).eval()
    with torch.no_grad():
        output = net(torch.randn(1, 3, 33, 40, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(output.exp().sum(1), torch.ones(1, 33, 40))


@pytest.mark.parametrize('factor', [2, 4, 8])
def test_bilinear_upsampling_keeps_a_plane(factor):
    up = bilinear_up(2, factor)
    ramp = torch.arange(8.0)[:, None] + 2 * torch.arange(8.0)
    inner = up(ramp.expand(1, 2, 8, 8))[0, 0, factor:-factor, factor:-factor]
    steps = inner.diff(dim=0).unique(), inner.diff(dim=1).unique()
    torch.testing.assert_close(steps[0], torch.full_like(steps[0], 1 / factor))
    torch.testing.assert_close(steps[1], torch.full_like(steps[1], 2 / factor))


@every_name
def test_initial_values(name):
    torch.manual_seed(0)
    net = models.build_segmenter(name)
    own = [m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 3e4]
    for conv in own:
        wanted = (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(wanted, rel=0.05)
        assert abs(conv.weight.mean().item()) < 0.05 * wanted
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match='unknown segmenter .*densenet201.*resnext101_elastic'):
        models.build_segmenter('densenet201')
