"""hubconf.py through torch.hub itself, from this folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hubconf
import models
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
def test_help_and_fresh_nets(hub, name):
    registry = models.segmenters if name.startswith('segmenter_') else models.classifiers
    build = registry[name.removeprefix('segmenter_')]
    text = hub.help('elastic', name)
    assert text.startswith(build.__doc__)
    assert 'checkpoint:' in text
    assert getattr(hubconf, name).__name__ == name
    for classes in {}, {'num_classes': 5}:
        with torch.device('meta'):
            ours, theirs = load(name, **classes), build(**classes)
        assert type(ours).__name__ == type(theirs).__name__
        shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (ours, theirs)]
        assert shapes[0] == shapes[1]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A classifier's and a segmenter's checkpoint, as files of 2019 are: they name neither task nor classes."""
    folder = tmp_path_factory.mktemp('files')
    nets = {'dla60x': models.classifiers['dla60x'](6), 'segmenter_dla60x': models.segmenters['dla60x'](4)}
    for name, net in nets.items():
        torch.save({'epoch': 3, 'state_dict': checkpoint.state_dict(net)}, folder / name)
    return {name: (folder / name, net) for name, net in nets.items()}


@pytest.mark.parametrize('name, classes', [('dla60x', 6), ('segmenter_dla60x', 4)])
def test_checkpoint_gives_weights_and_number_of_classes(files, name, classes):
    path, saved = files[name]
    for arguments in {}, {'num_classes': classes}:
        net = load(name, checkpoint=path, **arguments)
        assert net.state_dict().keys() == saved.state_dict().keys()
        assert all(torch.equal(value, saved.state_dict()[key]) for key, value in net.state_dict().items())
    with pytest.raises(UserError, match=f'a checkpoint of {classes} classes, not of 7'):
        load(name, checkpoint=str(path), num_classes=7)


@pytest.mark.parametrize('said', [{}, {'task': 'coco', 'classes': list('abcdef')}, {'task': 'imagenet'}])
def test_a_classifier_may_be_of_either_task(files, tmp_path, said):
    torch.save({**said, 'arch': 'dla60x', 'state_dict': files['dla60x'][1].state_dict()}, tmp_path / 'net.pth')
    assert load('dla60x', checkpoint=tmp_path / 'net.pth').fc.out_channels == 6


def test_checkpoint_of_another_net_is_refused(files, tmp_path):
    with pytest.raises(UserError, match=r'a checkpoint of another net, it holds no fc\.0\.bias'):
        load('segmenter_dla60x', checkpoint=files['dla60x'][0])
    for name in 'resnext50', 'dla60x_elastic':
        with pytest.raises(UserError, match='does not fit the net: missing: '):
            load(name, checkpoint=files['dla60x'][0])
    with pytest.raises(UserError, match='no checkpoint at '):
        load('dla60x', checkpoint=tmp_path / 'none')
    wrong = [({'task': 'voc'}, 'of voc, not of imagenet'), ({'arch': 'resnext50'}, 'of resnext50, not of dla60x')]
    for said, told in wrong:
        torch.save({**said, 'state_dict': files['dla60x'][1].state_dict()}, tmp_path / 'net.pth')
        with pytest.raises(UserError, match=told):
            load('dla60x', checkpoint=tmp_path / 'net.pth')


def test_arguments_of_the_builder_are_passed_on():
    assert load('segmenter_dla60x', checkpoint_activations=True).checkpoint_activations
    with pytest.raises(TypeError, match='unexpected keyword'):
        load('dla60x', pretrained=True)


def test_from_a_program_elsewhere(tmp_path):
    code = f"""import torch
net = torch.hub.load({str(ROOT)!r}, 'dla60x', source='local', num_classes=3)
print(tuple(net(torch.zeros(2, 3, 32, 32)).shape))"""
    ended = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, '(2, 3)\n', '')
