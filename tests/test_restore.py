"""utils/checkpoint.py: momentum in its place, transfer to another head, what does not fit and is told."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import models
import segment
from data.voc import CLASSES
from tests.checkpoints import momenta, released, trained
from tests.conftest import TinyNet, TinySegmenter
from tests.runs import assert_same
from utils.checkpoint import Checkpoint, Identity, head_difference, load_optimizer, resume, transfer
from utils.errors import UserError

NET = Identity('imagenet', 'tiny', list('01234'))
SEGMENTER = Identity('voc', 'tiny', CLASSES)


def file_of(state, **said):
    """A checkpoint as it would be read."""
    return Checkpoint(Path('file'), state, **said)


@pytest.mark.parametrize('load', [resume, transfer])
def test_all_that_does_not_fit_is_listed(load):
    state = TinyNet(5).state_dict() | {'stranger': torch.ones(1), 'conv1.weight': torch.ones(4, 3, 3, 3)}
    del state['bn3.bias'], state['bn3.num_batches_tracked']
    missing = 'file does not fit the net: missing: bn3.bias, bn3.num_batches_tracked; unexpected: stranger'
    told = f'{missing}; of another shape: conv1.weight (4, 3, 3, 3) instead of (8, 3, 3, 3)'
    with pytest.raises(UserError, match=re.escape(told)):
        load(TinyNet(5), file_of(state))


FIVE = TinyNet(5).state_dict()


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


def filled(make, value):
    """A net all of whose numbers are `value`."""
    with torch.device('meta'):
        net = make()
    net.to_empty(device='cpu')
    for tensor in net.state_dict().values():
        tensor.fill_(value)
    return net


DLA = models.segmenters['dla60x']


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
    model = filled(make, 0)
    assert transfer(model, file_of(filled(source, 1).state_dict())) == fresh
    for name, value in model.state_dict().items():
        assert (value == (not name.startswith(tuple(f'{module}.' for module in fresh)))).all(), name


# The optimizer


@pytest.mark.parametrize(
    'spoil, told',
    [
        (lambda saved: saved['param_groups'][0]['params'].pop(), r'optimizer of \d+ parameters, the net has \d+'),
        (
            lambda saved: next(iter(saved['state'].values())).update(momentum_buffer=torch.zeros(2)),
            r'momentum 0 is \(2,\), its parameter \(8, 3, 3, 3\)',
        ),
        (lambda saved: saved.pop('param_groups'), 'its optimizer has no param_groups'),
        (lambda saved: saved['state'].update({0: {'momentum_buffer': 'x'}}), 'its optimizer.state.0 is a dict, not'),
    ],
)
def test_optimizer_that_does_not_fit_is_told(spoil, told):
    model, optimizer = trained()
    saved = released(model, optimizer)['optimizer']
    spoil(saved)
    with pytest.raises(UserError, match=f'^file: {told}'):
        load_optimizer(model, optimizer, file_of({}, optimizer=saved))


def test_optimizer_of_what_was_trained_with_frozen_norms():
    """With --freeze_bn the reference gave its optimizer no batch norm's weight or bias."""
    model, _ = trained()
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if 'bn' not in name], 0.1, 0.9)
    optimizer.step()
    fresh, its_optimizer = trained(seed=1)
    its_optimizer.state.clear()
    load_optimizer(fresh, its_optimizer, file_of({}, optimizer=released(model, optimizer)['optimizer']))
    assert_same(momenta(fresh, its_optimizer), momenta(model, optimizer))
    assert momenta(fresh, its_optimizer)


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
