"""tools/pretrained.py: what net a file is of, as it says or as its tensors tell; hubconf.py, through torch.hub."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import hubconf
import models
from data.class_names import default_names
from data.voc import CLASSES
from tests.conftest import TinyNet, TinySegmenter
from tests.nets import on_meta
from tools.pretrained import identify, load_net
from utils.checkpoint import Checkpoint
from utils.errors import UserError

ROOT = Path(hubconf.__file__).parent
NAMES = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu']
HUB_NAMES = [*models.classifiers, *(f'segmenter_{name}' for name in models.segmenters)]


def test_classes_without_names():
    assert default_names('imagenet', 1000)[::999] == ['tench', 'toilet tissue']
    coco = default_names('coco', 80)
    assert (len(coco), len(set(coco)), coco[0], coco[11], coco[79]) == (80, 80, 'person', 'stop sign', 'toothbrush')
    assert default_names('voc', 21) == CLASSES
    assert default_names('imagenet', 80) == [f'class {place}' for place in range(80)]


def file_of(net: nn.Module, **said) -> Checkpoint:
    """A file of the net that says no more than this."""
    return Checkpoint(Path('x.pth'), net.state_dict(), **said)


@pytest.mark.parametrize('name', models.classifiers)
def test_classifier_is_told_by_its_tensors(name):
    for number, task in (1000, 'imagenet'), (80, 'coco'):
        found = file_of(on_meta(name, number))
        assert identify(found, None, None) == identify(replace(found, arch=name), None, None) == (task, name)
    for task in 'imagenet', 'coco':
        assert identify(replace(found, task=task), None, None) == identify(found, task, None) == (task, name)


@pytest.mark.parametrize('name', models.segmenters)
def test_segmenter_is_told_by_its_tensors(name):
    found = file_of(on_meta(f'{name}/seg', 6))
    assert identify(found, None, None) == ('voc', name)
    for key in [key for key in found.state_dict if key.endswith('num_batches_tracked')]:  # PyTorch 0.4.0 wrote none
        del found.state_dict[key]
    assert identify(found, None, None) == ('voc', name)


SAID = {'task': 'imagenet', 'arch': 'tiny', 'classes': NAMES}


@pytest.mark.parametrize(
    'net, said, given, told',
    [
        (nn.Linear(2, 2), {}, (), 'x.pth does not say what it is of, nor do its tensors tell: give --task and --arch$'),
        (nn.Linear(2, 2), {}, ('voc', 'tiny'), 'x.pth: a checkpoint of another net, it holds no score.bias'),
        (TinyNet(7), {}, ('voc', 'tiny'), 'x.pth: a checkpoint of another net, it holds no score.bias'),
        (TinyNet(7), {}, (), 'tell: give --task$'),
        (TinyNet(7), {}, (None, 'tiny'), 'tell: give --task$'),
        (TinyNet(7), SAID, ('coco',), 'a checkpoint of imagenet, not of coco'),
        (TinyNet(7), SAID, (None, 'dla60x'), 'a checkpoint of tiny, not of dla60x'),
        (TinyNet(7), {'arch': 'vgg16'}, (), 'of vgg16 for any task; tasks are imagenet, coco, voc; nets resnext50, '),
        (TinyNet(7), SAID | {'arch': 'dla60x'}, (), 'does not fit the net: missing: '),
        (TinyNet(7), SAID | {'classes': NAMES[:5]}, (), r'another shape: fc.weight \(7, 16\) instead of \(5, 16\)'),
    ],
)
def test_flags_and_file_must_agree(tiny, net, said, given, told):
    with pytest.raises(UserError, match=told):
        load_net(file_of(net, **said), *given)


@pytest.fixture
def hub(monkeypatch):
    """torch.hub, whose list and help know no local source, with this folder in the place of its cache."""
    monkeypatch.setattr(torch.hub, '_get_cache_or_reload', lambda *args, **kwargs: str(ROOT))
    return torch.hub


def load(name, **arguments):
    return torch.hub.load(str(ROOT), name, source='local', **arguments)


def test_the_registries_are_what_torch_hub_lists(hub):
    assert sorted(hub.list('elastic')) == sorted(HUB_NAMES)


@pytest.mark.parametrize('name', HUB_NAMES)
def test_each_name_is_the_net_of_the_registry(hub, monkeypatch, name):
    registry = models.segmenters if name.startswith('segmenter_') else models.classifiers
    text, build = hub.help('elastic', name), name.removeprefix('segmenter_')
    assert text.startswith(registry[build].__doc__)
    assert 'checkpoint:' in text
    assert getattr(hubconf, name).__name__ == name
    monkeypatch.setitem(registry, build, lambda **arguments: (name, arguments))
    for arguments in {}, {'num_classes': 5, 'checkpoint_activations': True}:
        assert load(name, **arguments) == (name, arguments)
    with pytest.raises(UserError, match='no checkpoint at '):
        load(name, checkpoint='/none')


@pytest.mark.parametrize(
    'name, net, said',
    [
        ('dla60x', TinyNet(6), {}),
        ('dla60x', TinyNet(6), {'task': 'imagenet'}),
        ('dla60x', TinyNet(6), {'task': 'coco', 'classes': NAMES[:6]}),
        ('segmenter_dla60x', TinySegmenter(6), {}),
    ],
)
def test_hub_gives_the_weights_and_number_of_classes_of_a_checkpoint(monkeypatch, tmp_path, name, net, said):
    registry = models.segmenters if name.startswith('segmenter_') else models.classifiers
    monkeypatch.setitem(registry, 'dla60x', type(net))
    path = tmp_path / 'net.pth'
    torch.save({**said, 'state_dict': net.state_dict()}, path)
    for arguments in {}, {'num_classes': 6}:
        found = load(name, checkpoint=path, **arguments).state_dict()
        assert found.keys() == net.state_dict().keys()
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in found.items())
    with pytest.raises(UserError, match='a checkpoint of 6 classes, not of 7'):
        load(name, checkpoint=str(path), num_classes=7)
    with pytest.raises(TypeError, match='unexpected keyword'):
        load(name, checkpoint=path, pretrained=True)
    for wrong in {'task': 'coco' if name != 'dla60x' else 'voc'}, {'arch': 'resnext50'}:
        torch.save({**said, **wrong, 'state_dict': net.state_dict()}, path)
        with pytest.raises(UserError, match=r'a checkpoint of \w+, not of (imagenet|voc|dla60x)'):
            load(name, checkpoint=path)


def test_from_a_program_elsewhere(tmp_path):
    code = f"""import torch
net = torch.hub.load({str(ROOT)!r}, 'dla60x', source='local', num_classes=3)
print(tuple(net(torch.zeros(2, 3, 32, 32)).shape))"""
    ended = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, '(2, 3)\n', '')
