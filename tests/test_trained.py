"""tools/pretrained.py: what net a file is of, as it says or as its tensors tell; hubconf.py, through torch.hub."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import hubconf
import models
from data.class_names import default_names, readable_names
from data.voc import CLASSES
from models.convert import elasticize
from tests.checkpoints import file_of
from tests.conftest import TinyNet, TinySegmenter
from tests.nets import on_meta
from tests.runs import assert_same
from tools.pretrained import identify, load_net
from utils.errors import UserError

ROOT = str(Path(hubconf.__file__).parent)
NAMES = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu']
SAID = {'task': 'imagenet', 'arch': 'tiny', 'classes': NAMES}
FIRST = next(iter(models.classifiers))
REGISTRY = models.classifiers | {f'segmenter_{name}': build for name, build in models.segmenters.items()}


def test_classes_without_names_and_imagenets_folders():
    assert default_names('imagenet', 1000)[::999] == ['tench', 'toilet tissue']
    coco = default_names('coco', 80)
    assert (len(coco), len(set(coco)), coco[0], coco[11], coco[79]) == (80, 80, 'person', 'stop sign', 'toothbrush')
    assert default_names('voc', 21) == CLASSES
    assert default_names('imagenet', 80) == [f'class {place}' for place in range(80)]
    folders = [f'n{10_000_000 + 7 * place}' for place in range(1000)]
    assert readable_names('imagenet', folders) == default_names('imagenet', 1000)
    for others in folders[::-1], folders[:-1], ['x', *folders[1:]]:
        assert readable_names('imagenet', others) == others
    assert readable_names('coco', folders[:80]) == folders[:80]


@pytest.mark.parametrize('name', [*models.classifiers, *(f'{name}/seg' for name in models.segmenters)])
def test_net_is_told_by_its_tensors(name):
    arch, tasks = name.removesuffix('/seg'), {'voc': 6} if name.endswith('/seg') else {'imagenet': 1000, 'coco': 80}
    for task, classes in tasks.items():
        found = file_of(on_meta(name, classes).state_dict())
        older = {key: value for key, value in found.state_dict.items() if 'num_batches' not in key}  # of PyTorch 0.4.0
        for file in found, replace(found, arch=arch), replace(found, state_dict=older):
            assert identify(file, None, None) == (task, arch)
    for task in tasks:
        assert identify(replace(found, task=task), None, None) == identify(found, task, None) == (task, arch)


@pytest.mark.parametrize(
    'net, said, given, told',
    [
        (nn.Linear(2, 2), {}, (), 'file does not say what it is of, nor do its tensors tell: give --task and --arch$'),
        (TinyNet(7), {}, ('voc', 'tiny'), 'file: a checkpoint of another net, it holds no score.bias'),
        (TinyNet(7), {}, (), 'tell: give --task$'),
        (TinyNet(7), SAID, ('coco',), 'a checkpoint of imagenet, not of coco'),
        (TinyNet(7), SAID, (None, 'dla60x'), 'a checkpoint of tiny, not of dla60x'),
        (TinyNet(7), {'arch': 'vgg16'}, (), f'of vgg16 for any task; tasks are imagenet, coco, voc; nets {FIRST}, '),
        (TinyNet(7), SAID | {'classes': NAMES[:5]}, (), r'another shape: fc.weight \(7, 16\) instead of \(5, 16\)'),
    ],
)
def test_flags_and_file_must_agree(tiny, net, said, given, told):
    with pytest.raises(UserError, match=told):
        load_net(file_of(net.state_dict(), **said), *given)


def load(name, **arguments):
    return torch.hub.load(ROOT, name, source='local', **arguments)


def test_each_name_that_torch_hub_lists_is_a_net_of_the_registries(monkeypatch):
    """Its list and help know no local source: this folder stands in the place of its cache."""
    monkeypatch.setattr(torch.hub, '_get_cache_or_reload', lambda *args, **kwargs: ROOT)
    assert sorted(torch.hub.list('elastic')) == sorted(['elasticize', *REGISTRY])
    assert hubconf.elasticize is elasticize
    for name, build in REGISTRY.items():
        text = torch.hub.help('elastic', name)
        assert text.startswith(build.__doc__) and 'checkpoint:' in text
        assert getattr(hubconf, name).__name__ == name
        registry = models.segmenters if name.startswith('segmenter_') else models.classifiers
        monkeypatch.setitem(registry, name.removeprefix('segmenter_'), lambda name=name, **given: (name, given))
        for arguments in {}, {'num_classes': 5, 'checkpoint_activations': True}:
            assert load(name, **arguments) == (name, arguments)
        with pytest.raises(UserError, match='no checkpoint at '):
            load(name, checkpoint='/none')


@pytest.mark.parametrize(
    'name, net, said, wrong',
    [
        ('dla60x', TinyNet(6), {}, {'task': 'voc'}),
        ('dla60x', TinyNet(6), {'task': 'coco', 'classes': NAMES[:6]}, {'arch': 'resnext50'}),
        ('segmenter_dla60x', TinySegmenter(6), {}, {'task': 'coco'}),
    ],
)
def test_hub_gives_the_weights_and_number_of_classes_of_a_checkpoint(monkeypatch, tmp_path, name, net, said, wrong):
    registry = models.classifiers if name == 'dla60x' else models.segmenters
    monkeypatch.setitem(registry, 'dla60x', type(net))
    path, state = tmp_path / 'net.pth', net.state_dict()
    torch.save({**said, 'state_dict': state}, path)
    for arguments in {}, {'num_classes': 6}:
        assert_same(load(name, checkpoint=path, **arguments).state_dict(), state)
    with pytest.raises(UserError, match='a checkpoint of 6 classes, not of 7'):
        load(name, checkpoint=str(path), num_classes=7)
    torch.save({**said, **wrong, 'state_dict': state}, path)
    with pytest.raises(UserError, match=r'a checkpoint of \w+, not of (imagenet|voc|dla60x)'):
        load(name, checkpoint=path)
