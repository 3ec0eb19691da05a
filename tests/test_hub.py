"""hubconf.py through torch.hub itself, from this folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hubconf
import models
from tests.nets import FAMILIES
from utils import checkpoint
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
NAMES = [*models.classifiers, *(f'segmenter_{name}' for name in models.segmenters)]


@pytest.fixture
def hub(monkeypatch):
    """torch.hub, whose list and help know no local source, with this folder in the place of its cache."""
    monkeypatch.setattr(torch.hub, '_get_cache_or_reload', lambda *args, **kwargs: str(ROOT))
    return torch.hub


def load(name, **arguments):
    return torch.hub.load(str(ROOT), name, source='local', **arguments)


def test_the_registries_are_what_is_listed(hub):
    assert sorted(hub.list('elastic')) == sorted(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_each_name_is_the_net_of_the_registry(hub, monkeypatch, name):
    registry = models.segmenters if name.startswith('segmenter_') else models.classifiers
    text, build = hub.help('elastic', name), name.removeprefix('segmenter_')
    assert text.startswith(registry[build].__doc__)
    assert 'checkpoint:' in text
    assert getattr(hubconf, name).__name__ == name
    monkeypatch.setitem(registry, build, lambda **arguments: (name, arguments))
    for arguments in {}, {'num_classes': 5}:
        assert load(name, **arguments) == (name, arguments)


@pytest.fixture
def shallow(monkeypatch, tmp_path):
    """A classifier and a segmenter, shallow ones, and their checkpoints as those of 2019: neither task nor classes."""
    monkeypatch.setitem(models.classifiers, 'dla60x', FAMILIES['dla'])
    monkeypatch.setitem(models.classifiers, 'resnext50', FAMILIES['resnext'])
    monkeypatch.setitem(models.segmenters, 'dla60x', FAMILIES['dla_up'])
    nets = {'dla60x': models.classifiers['dla60x'](6), 'segmenter_dla60x': models.segmenters['dla60x'](4)}
    for name, net in nets.items():
        torch.save({'epoch': 3, 'state_dict': checkpoint.state_dict(net)}, tmp_path / name)
    return {name: (tmp_path / name, net.state_dict()) for name, net in nets.items()}


@pytest.mark.parametrize(
    'name, classes, said',
    [
        ('segmenter_dla60x', 4, {}),
        ('dla60x', 6, {}),
        ('dla60x', 6, {'task': 'imagenet', 'arch': 'dla60x'}),
        ('dla60x', 6, {'task': 'coco', 'arch': 'dla60x', 'classes': list('abcdef')}),
    ],
)
def test_checkpoint_gives_weights_and_number_of_classes(shallow, name, classes, said):
    path, saved = shallow[name]
    if said:
        torch.save({**said, 'state_dict': saved}, path)
    for arguments in {}, {'num_classes': classes}:
        found = load(name, checkpoint=path, **arguments).state_dict()
        assert found.keys() == saved.keys()
        assert all(torch.equal(value, saved[key]) for key, value in found.items())
    with pytest.raises(UserError, match=f'a checkpoint of {classes} classes, not of 7'):
        load(name, checkpoint=str(path), num_classes=7)


def test_checkpoint_of_another_net_is_refused(shallow, tmp_path):
    path, state = shallow['dla60x']
    with pytest.raises(UserError, match=r'a checkpoint of another net, it holds no fc\.0\.bias'):
        load('segmenter_dla60x', checkpoint=path)
    with pytest.raises(UserError, match='does not fit the net: missing: '):
        load('resnext50', checkpoint=path)
    with pytest.raises(UserError, match='no checkpoint at '):
        load('dla60x', checkpoint=tmp_path / 'none')
    wrong = [({'task': 'voc'}, 'of voc, not of imagenet'), ({'arch': 'resnext50'}, 'of resnext50, not of dla60x')]
    for said, told in wrong:
        torch.save({**said, 'state_dict': state}, tmp_path / 'net.pth')
        with pytest.raises(UserError, match=told):
            load('dla60x', checkpoint=tmp_path / 'net.pth')


def test_arguments_of_the_builder_are_passed_on(shallow):
    assert load('segmenter_dla60x', checkpoint_activations=True).checkpoint_activations
    path, _ = shallow['segmenter_dla60x']
    assert load('segmenter_dla60x', checkpoint=path, checkpoint_activations=True).checkpoint_activations
    with pytest.raises(TypeError, match='unexpected keyword'):
        load('dla60x', pretrained=True)


def test_from_a_program_elsewhere(tmp_path):
    code = f"""import torch
net = torch.hub.load({str(ROOT)!r}, 'dla60x', source='local', num_classes=3)
print(tuple(net(torch.zeros(2, 3, 32, 32)).shape))"""
    ended = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, '(2, 3)\n', '')
