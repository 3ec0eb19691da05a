"""utils/trained.py: what net a file is of, as it says or as its tensors tell; its weights, its classes' names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from tests.conftest import TinyNet
from tests.nets import on_meta
from utils.checkpoint import Checkpoint
from utils.class_names import default_names
from utils.errors import UserError
from utils.trained import identify, load_net
from utils.voc import CLASSES

NAMES = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu']


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


def test_net_of_a_checkpoint_has_its_weights(tiny):
    model = TinyNet(7)
    loaded, identity = load_net(file_of(model, **SAID))
    assert (identity.task, identity.arch, identity.classes) == ('imagenet', 'tiny', NAMES)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
