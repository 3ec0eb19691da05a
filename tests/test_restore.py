"""utils/restore.py: transfer to another head, and what does not fit and is told."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import models
import segment
from tests.checkpoints import released, trained
from tests.conftest import TinyNet, TinySegmenter
from utils.checkpoint import Checkpoint
from utils.errors import UserError
from utils.restore import Identity, head_difference, load_optimizer, resume, transfer
from utils.voc import CLASSES

NET = Identity('imagenet', 'tiny', list('01234'))
SEGMENTER = Identity('voc', 'tiny', CLASSES)
FIVE = TinyNet(5).state_dict()
DLA = models.segmenters['dla60x']


def file_of(state, **said):
    """A checkpoint as it would be read."""
    return Checkpoint(Path('file'), state, **said)


@pytest.mark.parametrize('load', [resume, transfer])
def test_all_that_does_not_fit_is_listed(load):
    state = FIVE | {'stranger': torch.ones(1), 'conv1.weight': torch.ones(4, 3, 3, 3)}
    del state['bn3.bias'], state['bn3.num_batches_tracked']
    missing = 'file does not fit the net: missing: bn3.bias, bn3.num_batches_tracked; unexpected: stranger'
    told = f'{missing}; of another shape: conv1.weight (4, 3, 3, 3) instead of (8, 3, 3, 3)'
    with pytest.raises(UserError, match=re.escape(told)):
        load(TinyNet(5), file_of(state))


@pytest.mark.parametrize(
    'state, said, wanted, told',
    [
        (FIVE, {}, NET, ''),
        (FIVE | {'fc.weight': torch.tensor(1.0)}, {}, NET, ''),  # so that resume tells the shape
        (FIVE, {'task': 'imagenet', 'classes': list('01234')}, NET, ''),
        (FIVE, {'task': 'coco'}, NET, 'its task is coco, not imagenet'),
        (FIVE, {'classes': list('01x34')}, NET, 'its classes differ: x where the data has 2'),
        (FIVE, {'classes': ['0', '1']}, NET, 'it names 2 classes, not 5'),
        (TinyNet(3).state_dict(), {}, NET, 'its head has 3 classes, not 5'),
        (TinySegmenter().state_dict(), {}, SEGMENTER, ''),
        (TinySegmenter(20).state_dict(), {}, SEGMENTER, 'its head has 20 classes, not 21'),
        (FIVE, {}, SEGMENTER, 'it holds no score, so it is of a classifier, or of another net'),
    ],
)
def test_head_difference(state, said, wanted, told):
    """Files of the reference name neither task nor classes, and for VOC not the net either."""
    model = TinyNet(5) if wanted is NET else TinySegmenter()
    assert head_difference(file_of(state, **said), model, wanted) == told


@pytest.mark.parametrize(
    'source, make, fresh',
    [
        (partial(TinyNet, 5), partial(TinyNet, 3), ['fc']),
        (partial(TinyNet, 5), TinySegmenter, ['score', 'base.fc']),
        (models.classifiers['resnext50_elastic'], models.segmenters['resnext50_elastic'], ['aspp']),
        (models.classifiers['dla60x'], DLA, ['dla_up', 'fc', 'up']),
        (partial(DLA, 20), DLA, ['dla_up', 'fc', 'up']),
    ],
)
def test_transfer_leaves_exactly_the_heads(source, make, fresh):
    with torch.device('meta'):
        given, model = source().state_dict(), make()
    ones = {name: torch.ones_like(value, device='cpu') for name, value in given.items()}
    for value in model.to_empty(device='cpu').state_dict().values():
        value.zero_()
    assert transfer(model, file_of(ones)) == fresh
    for name, value in model.state_dict().items():
        assert (value == (not name.startswith(tuple(f'{module}.' for module in fresh)))).all(), name


@pytest.mark.parametrize(
    'spoil, told',
    [
        (lambda groups, state: groups[0]['params'].pop(), r'optimizer of \d+ parameters, the net has \d+'),
        (
            lambda groups, state: next(iter(state.values())).update(momentum_buffer=torch.zeros(2)),
            r'momentum 0 is \(2,\), its parameter \(8, 3, 3, 3\)',
        ),
        (lambda groups, state: groups[0].pop('params'), r'its optimizer.param_groups\[0\] has no params'),
        (lambda groups, state: state.update({0: {'momentum_buffer': 'x'}}), 'its optimizer.state.0 is a dict, not'),
    ],
)
def test_optimizer_that_does_not_fit_is_told(spoil, told):
    model, optimizer = trained()
    saved = released(model, optimizer)['optimizer']
    spoil(saved['param_groups'], saved['state'])
    with pytest.raises(UserError, match=f'^file: {told}'):
        load_optimizer(model, optimizer, file_of({}, optimizer=saved))


def test_frozen_segmenter_of_the_reference_has_145_of_387():
    model = models.build_segmenter('resnext50_elastic')
    optimizer = torch.optim.SGD(segment.parameter_groups(model, 1.0), 0.1, 0.9)
    saved = {'state': {}, 'param_groups': [{'params': list(range(140))}, {'params': list(range(140, 145))}]}
    saved['state'][144] = {'momentum_buffer': torch.arange(21.0)}
    saved['state'][0] = {'momentum_buffer': torch.ones(64, 3, 7, 7)}
    load_optimizer(model, optimizer, file_of({}, optimizer=saved))
    assert sum(len(group['params']) for group in optimizer.param_groups) == 387
    assert torch.equal(optimizer.state[model.aspp.conv3.bias]['momentum_buffer'], torch.arange(21.0))
    assert optimizer.state[model.conv1.weight]['momentum_buffer'].all()
