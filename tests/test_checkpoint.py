"""Checkpoint files: every age is read, nothing in them is executed, a killed write loses nothing; what fits a net."""

import os
import re
import resource
from functools import partial

import numpy as np
import pytest
import torch

import models
from tests.checkpoints import Hostile, file_of, killed_at, released, trained
from tests.conftest import TinyNet, TinySegmenter
from tests.runs import assert_same
from utils import checkpoint
from utils.checkpoint import CheckpointMeta, head_mismatch, load_optimizer, resume, transfer
from utils.errors import UserError

ROUND = []
ROUND.append(ROUND)  # a list that holds itself


def momenta(model, optimizer):
    """The momentum of each parameter that has one, by the parameter's name."""
    states = {name: optimizer.state.get(parameter) for name, parameter in model.named_parameters()}
    return {name: state['momentum_buffer'] for name, state in states.items() if state}


@pytest.mark.parametrize(
    'prefix, zipped, norms, more',
    [
        ('', False, True, {'position': {'step': 0, 'plan': {}, 'metrics': ROUND}}),
        ('', True, True, {'epoch': np.int64(7), 'best_err1': np.float64(21.5)}),
        ('module.', False, False, {}),
        ('module.', True, True, {'best_model': 'x/y.ckpt', 'best_so_far': None, 3: 'three', 'task': None}),
        ('module.1.', False, True, {}),
    ],
)
def test_released_file_is_resumed_with_its_momentum(tmp_path, monkeypatch, prefix, zipped, norms, more):
    """Without a prefix of PyTorch 0.4.0, which had no counters; with `module.1.` of half precision but batch norms."""
    model, optimizer = trained(norms=norms)
    state = {name: value for name, value in model.state_dict().items() if prefix or 'num_batches' not in name}
    if prefix == 'module.1.':
        state = {name: value.half() if value.dim() > 1 else value for name, value in state.items()}
        model.load_state_dict(state)  # rounds its own
    content = released(model, optimizer) | {'state_dict': {f'{prefix}{name}': v for name, v in state.items()}}
    monkeypatch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
    torch.save(content | more, tmp_path / 'old.pth.tar', _use_new_zipfile_serialization=zipped)
    assert b'cuda:0' in (tmp_path / 'old.pth.tar').read_bytes()
    found = checkpoint.read(tmp_path / 'old.pth.tar')
    assert (found.epoch, type(found.epoch), found.arch, found.best) == (7, int, 'tiny', {'best_err1': 21.5})
    fresh, its_optimizer = trained(seed=1)
    its_optimizer.state.clear()
    resume(fresh, found)
    load_optimizer(fresh, its_optimizer, found)
    assert_same(fresh.state_dict(), model.state_dict())
    assert_same(momenta(fresh, its_optimizer), momenta(model, optimizer))
    assert momenta(fresh, its_optimizer)
    assert its_optimizer.param_groups[0]['weight_decay'] == 0  # as the command line says, not as the file


ONE = torch.ones(1)
ODD = ONE.to(torch.complex64), ONE.to('meta'), ONE.to_sparse(), ONE.to(torch.float8_e5m2), ONE.expand(2**40)


@pytest.mark.parametrize(
    'change, told',
    [
        *((content, 'not a PyTorch checkpoint, or a damaged') for content in (b'', b'<html>', b'PK\x03\x04 cut off')),
        ([1, 2], 'a list, not a checkpoint'),
        ({'extra': Hostile('/no/executed')}, r'refused, its pickle names posix\.mkdir'),
        ({'state_dict': {}}, 'holds no state_dict of named tensors'),
        ({'state_dict': {0: ONE}}, 'holds no state_dict of named tensors'),
        *(({'state_dict': {'w': odd}}, 'its state_dict.w is a tensor') for odd in ODD),
        *(({'optimizer': {'state': {0: odd}}}, 'its optimizer.state.0 is a tensor') for odd in ODD),
        *(({'state_dict': {'w': odd}}, 'its state_dict.w is not finite') for odd in (ONE / 0, ONE * torch.nan)),
        ({'optimizer': [ONE * torch.nan]}, 'its optimizer.0 is not finite'),
        ({'epoch': float('nan')}, 'its epoch is not a whole number from 0 on'),
        ({'epoch': 10**400}, 'its epoch is not a whole number from 0 on'),
        ({'seed': '0'}, 'its seed is not a whole number from 0 on'),
        ({'classes': ['ant', 5]}, 'its classes is not a list of names'),
        ({'smooth_loss': '3'}, 'its smooth_loss is not a finite number'),
        ({'position': 3}, 'its position is not a dict'),
        ({'best_err1': ONE * 1j}, 'its best error is no number'),
    ],
)
def test_what_is_no_checkpoint_of_ours_is_told(tmp_path, change, told):
    path = tmp_path / 'odd'
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        torch.save(released(*trained()) | change if isinstance(change, dict) else change, path)
    with pytest.raises(UserError, match=f'odd: {told}'):
        checkpoint.read(path)


def test_a_changed_number_is_told(tmp_path):
    """Which torch.load would take."""
    path = tmp_path / 'model.pth.tar'
    checkpoint.write({'state_dict': {'w': torch.full([9], 1.5)}}, path)
    path.write_bytes(path.read_bytes().replace(b'\0\0\xc0\x3f', b'\0\0\xc0\x3e', 1))
    with pytest.raises(UserError, match='model.pth.tar: .*a damaged one: the checksum of .*data/0 does not fit'):
        checkpoint.read(path)


@pytest.mark.parametrize('fsync, written', [(2, 'old old'), (3, 'new old'), (4, 'new new')])
def test_killed_write_leaves_whole_files(tmp_path, monkeypatch, fsync, written):
    """Killed at the second one's contents, which follow the first one's, or at the folder after either's renaming."""
    paths = tmp_path / 'a', tmp_path / 'b'
    checkpoint.write({'state_dict': {'w': torch.zeros(9)}, 'arch': 'old'}, *paths)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, os, 'fsync', fsync)
        checkpoint.write({'state_dict': {'w': torch.ones(9)}, 'arch': 'new'}, *paths)
    assert ' '.join(checkpoint.read(path).arch for path in paths) == written


def test_full_disk_is_one_error_and_leaves_the_old_file(tmp_path):
    path, limits = tmp_path / 'model.pth.tar', resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint.write({'state_dict': {'w': torch.zeros(9)}, 'arch': 'old'}, path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=f'cannot write {path}'):
            checkpoint.write({'state_dict': {'w': torch.ones(50_000)}, 'arch': 'new'}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read(path).arch == 'old'
    assert os.listdir(tmp_path) == ['model.pth.tar']


# From a file into a net

FIVE = TinyNet(5).state_dict()


@pytest.mark.parametrize('load', [resume, transfer])
def test_all_that_does_not_fit_is_listed(load):
    state = FIVE | {'stranger': torch.ones(1), 'conv1.weight': torch.ones(4, 3, 3, 3)}
    del state['bn3.bias'], state['bn3.num_batches_tracked']
    missing = 'file does not fit the net: missing: bn3.bias, bn3.num_batches_tracked; unexpected: stranger'
    told = f'{missing}; of another shape: conv1.weight (4, 3, 3, 3) instead of (8, 3, 3, 3)'
    with pytest.raises(UserError, match=re.escape(told)):
        load(TinyNet(5), file_of(state))


@pytest.mark.parametrize(
    'state, said, net, told',
    [
        (FIVE | {'fc.weight': torch.tensor(1.0)}, {}, TinyNet(5), ''),  # so that resume tells the shape
        (FIVE, {'classes': ['0', '1']}, TinyNet(5), 'it names 2 classes, not 5'),
        (FIVE, {}, TinySegmenter(5), 'it holds no score, so it is of a classifier, or of another net'),
    ],
)
def test_head_difference(state, said, net, told):
    """Other differences are told by the scripts, in their tests."""
    meta = CheckpointMeta('imagenet', 'tiny', list('01234'))
    assert head_mismatch(file_of(state, **said), net, meta) == told


@pytest.mark.parametrize(
    'source, make, fresh',
    [
        (partial(TinyNet, 5), partial(TinyNet, 3), ['fc']),
        (models.classifiers['resnext50_elastic'], models.segmenters['resnext50_elastic'], ['aspp']),
        (models.classifiers['dla60x'], models.segmenters['dla60x'], ['dla_up', 'fc', 'up']),
        (partial(models.segmenters['dla60x'], 20), models.segmenters['dla60x'], ['dla_up', 'fc', 'up']),
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
        (lambda saved: saved['param_groups'][0]['params'].pop(), r'optimizer of \d+ parameters, the net has \d+'),
        (lambda saved: saved.pop('param_groups'), "its optimizer has another form: KeyError 'param_groups'"),
        (torch.zeros(2), r'momentum 0 is \(2,\), its parameter \(8, 3, 3, 3\)'),
        ('x', "its optimizer has another form: 'str' object has no attribute 'shape'"),
    ],
)
def test_optimizer_that_does_not_fit_is_told(spoil, told):
    """Spoiled by a function, or by another momentum of the first parameter."""
    model, optimizer = trained()
    saved = released(model, optimizer)['optimizer']
    if callable(spoil):
        spoil(saved)
    else:
        next(iter(saved['state'].values()))['momentum_buffer'] = spoil
    with pytest.raises(UserError, match=f'^file: {told}'):
        load_optimizer(model, optimizer, file_of({}, optimizer=saved))
