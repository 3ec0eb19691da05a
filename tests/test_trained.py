"""utils/trained.py: what net a file is of, as it says or as its tensors tell; its weights, its classes' names."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import models
from tests.conftest import TinyNet
from tests.test_predict import NAMES, pictures, predict, save  # noqa: F401 - fixtures
from utils import checkpoint
from utils.checkpoint import Checkpoint
from utils.class_names import default_names
from utils.errors import UserError
from utils.trained import identify, load_net
from utils.voc import CLASSES


def test_classes_without_names():
    assert default_names('imagenet', 1000)[::999] == ['tench', 'toilet tissue']
    coco = default_names('coco', 80)
    assert (len(coco), len(set(coco)), coco[0], coco[11], coco[79]) == (80, 80, 'person', 'stop sign', 'toothbrush')
    assert default_names('voc', 21) == CLASSES
    assert default_names('imagenet', 80) == [f'class {place}' for place in range(80)]


def said_nothing(build, number, **said):
    """A file of the net that says no more than this, without memory for its weights."""
    with torch.device('meta'):
        return Checkpoint('x.pth', build(number).state_dict(), **said)


@pytest.mark.parametrize('name', models.classifiers)
def test_classifier_is_told_by_its_tensors(name):
    for number, task in (1000, 'imagenet'), (80, 'coco'):
        found = said_nothing(models.classifiers[name], number)
        assert identify(found, None, None) == (task, name)
        assert identify(replace(found, arch=name), None, None) == (task, name)
    for task in 'imagenet', 'coco':
        assert identify(replace(found, task=task), None, None) == (task, name)
        assert identify(found, task, None) == (task, name)


def test_classifier_of_other_classes_is_not_told():
    found = said_nothing(models.dla60x, 6)
    for arch in None, 'dla60x':
        with pytest.raises(UserError, match='x.pth does not say what it is of, nor do its tensors tell: give --task$'):
            identify(found, None, arch)
    assert identify(replace(found, task='coco'), None, None) == ('coco', 'dla60x')


@pytest.mark.parametrize('name', models.segmenters)
def test_segmenter_is_told_by_its_tensors(name):
    found = said_nothing(models.segmenters[name], 6)
    assert identify(found, None, None) == ('voc', name)
    for key in [key for key in found.state_dict if key.endswith('num_batches_tracked')]:  # PyTorch 0.4.0 wrote none
        del found.state_dict[key]
    assert identify(found, None, None) == ('voc', name)


def test_flags_and_file_must_agree(save, predict, pictures, capsys):  # noqa: F811 - the fixtures
    torch.save(nn.Linear(2, 2).state_dict(), predict.shared[0])
    assert 'nor do its tensors tell: give --task and --arch' in predict.error(capsys, pictures[0])
    told = predict.error(capsys, pictures[0], '--task', 'voc', '--arch', 'tiny')
    assert 'net.pth: a checkpoint of another net, it holds no score.bias' in told
    save(TinyNet, 7)
    assert told in predict.error(capsys, pictures[0], '--task', 'voc', '--arch', 'tiny')
    assert 'tell: give --task' in predict.error(capsys, pictures[0])
    save(TinyNet, 7, task='imagenet', arch='tiny', classes=NAMES)
    assert 'a checkpoint of imagenet, not of coco' in predict.error(capsys, pictures[0], '--task', 'coco')
    assert 'a checkpoint of tiny, not of dla60x' in predict.error(capsys, pictures[0], '--arch', 'dla60x')
    save(TinyNet, 7, arch='vgg16')
    told = 'a checkpoint of vgg16 for any task; tasks are imagenet, coco, voc; nets'
    assert told in predict.error(capsys, pictures[0])
    save(TinyNet, 7, task='imagenet', arch='dla60x')
    assert 'does not fit the net: missing: ' in predict.error(capsys, pictures[0])
    save(TinyNet, 7, task='imagenet', arch='tiny', classes=NAMES[:5])
    assert 'of another shape: fc.weight (7, 16) instead of (5, 16)' in predict.error(capsys, pictures[0])


def test_net_of_a_checkpoint_has_its_weights(save, predict):  # noqa: F811 - the fixtures
    model = save(TinyNet, 7, task='imagenet', arch='tiny', classes=NAMES)
    loaded, identity = load_net(checkpoint.read(predict.shared[0]))
    assert (identity.task, identity.arch, identity.classes) == ('imagenet', 'tiny', NAMES)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
