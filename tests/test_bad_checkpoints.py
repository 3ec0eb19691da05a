"""Checkpoints whose tensors no net can hold, or whose state is not the task's; the reference's half-precision files."""

import re

import pytest
import torch

import models
from tests.conftest import Script, stop_at
from tests.runs import LAST
from tests.test_checkpoint import released, same, trained
from tools import predict
from utils import checkpoint
from utils.errors import CPP_STACK, UserError
from utils.interrupt import Stopped
from utils.restore import load_optimizer, resume
from utils.trained import open_classifier

WEIGHT = 'module.conv1.weight'
ODD = {
    'complex': lambda value: value.to(torch.complex64),
    'sparse': lambda value: value.to_sparse(),
    'meta': lambda value: value.to('meta'),
    'quantized': lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    'float8': lambda value: value.to(torch.float8_e5m2),
    'expanded': lambda value: value.flatten()[:1].expand(2**40),
}


def save_with(path, place, value):
    """A file of the reference with a weight, a statistic or a momentum of `value(its tensor)`."""
    content = released(*trained())
    holder, name = {
        'weight': (content['state_dict'], WEIGHT),
        'statistic': (content['state_dict'], 'module.bn3.running_var'),
        'momentum': (next(iter(content['optimizer']['state'].values())), 'momentum_buffer'),
    }[place]
    holder[name] = value(holder[name])
    torch.save(content, path)
    return path


@pytest.mark.filterwarnings('ignore:torch.quantize_per_tensor')
@pytest.mark.parametrize('kind', ODD)
@pytest.mark.parametrize('place', ['weight', 'momentum'])
def test_tensors_that_no_net_holds_are_named(tmp_path, kind, place):
    path = save_with(tmp_path / 'odd', place, ODD[kind])
    name = f'state_dict.{WEIGHT}' if place == 'weight' else r'optimizer.state.\d+.momentum_buffer'
    with pytest.raises(UserError, match=rf'odd: its {name} is a tensor'):
        checkpoint.read(path)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize(
    'place, name',
    [
        ('weight', f'state_dict.{WEIGHT}'),
        ('statistic', 'state_dict.module.bn3.running_var'),
        ('momentum', r'optimizer.state.\d+.momentum_buffer'),
    ],
)
def test_numbers_that_are_not_finite_are_named(tmp_path, place, name, value):
    path = save_with(tmp_path / 'nan', place, lambda tensor: tensor.clone().fill_(value))
    with pytest.raises(UserError, match=f'nan: its {name} is not finite'):
        checkpoint.read(path)


def test_scripts_tools_and_hub_refuse_a_net_that_is_not_finite(classify, tmp_path, capsys, monkeypatch):
    import hubconf

    path = save_with(tmp_path / 'nan', 'weight', lambda tensor: tensor.clone().fill_(torch.nan))
    (tmp_path / 'a.png').touch()
    told = f'{path}: its state_dict.{WEIGHT} is not finite'
    for arguments in ['--evaluate'], ['--output', tmp_path]:
        assert classify.error(capsys, '--resume', path, *arguments) == f'error: {told}'
    assert Script(predict, path, f'{tmp_path}/a.png').error(capsys) == f'error: {told}'
    for read in open_classifier, lambda path: hubconf.resnext50(checkpoint=path):
        with pytest.raises(UserError, match=re.escape(told)):
            read(path)


def test_half_precision_file_of_the_reference_is_resumed(tmp_path):
    """Its net was the second part of a Sequential, with half-precision weights but batch norms, within DDP."""
    model, optimizer = trained()
    content = released(model, optimizer)
    norms = {name for name, _ in model.named_parameters() if 'bn' in name} | {name for name, _ in model.named_buffers()}
    content['state_dict'] = {
        f'module.1.{name}': value if name in norms else value.half() for name, value in model.state_dict().items()
    }
    torch.save(content, tmp_path / 'fp16', _use_new_zipfile_serialization=False)
    fresh, its_optimizer = trained(seed=1)
    found = checkpoint.read(tmp_path / 'fp16')
    resume(fresh, found)
    load_optimizer(fresh, its_optimizer, found)
    assert not same(fresh, model)
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value if name in norms else value.half().float())
    assert fresh.conv1.weight.dtype == torch.float32


def test_released_names_hold_no_number_that_would_be_cut_off():
    for build in (*models.classifiers.values(), *models.segmenters.values()):
        with torch.device('meta'):
            assert not [name for name in build().state_dict() if name.startswith(('module.', '1.'))]


@pytest.fixture
def stopped(classify, tmp_path, monkeypatch):
    """What a run that was stopped inside its first epoch of nine steps saved, to be changed."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 10)
        classify('--output', tmp_path)
    return torch.load(tmp_path / LAST, weights_only=True)


@pytest.mark.parametrize(
    'change, told',
    [
        ({'step': 10}, 'its position is step 10 of an epoch of 36 samples'),
        ({'step': 10**6}, 'its position is step 1000000 of an epoch of 36 samples'),
        ({'metrics': {}}, "its metrics has another form: KeyError 'loss'"),
        ({'metrics': {'loss': 3.0, 'err1': 3.0, 'err5': 3.0}}, 'its metrics has another form: '),
        ({'metrics': {name: {'sum': torch.zeros(2), 'count': 1} for name in ('loss', 'err1', 'err5')}}, 'its metrics'),
        ({'metrics': {name: {'sum': 1, 'count': torch.ones(2)} for name in ('loss', 'err1', 'err5')}}, 'its metrics'),
        ({'metrics': {name: {'sum': 1, 'count': None} for name in ('loss', 'err1', 'err5')}}, 'its metrics'),
        ({'plan': {}}, 'was saved inside an epoch of ; it cannot go on with samples 36'),
    ],
)
def test_position_that_is_none_of_this_run(classify, tmp_path, capsys, stopped, change, told):
    stopped['position'].update(change)
    torch.save(stopped, tmp_path / LAST)
    error = classify.error(capsys, '--output', tmp_path, '--auto-resume')
    assert error.startswith(f'error: {tmp_path / LAST}')
    assert told in error


def test_position_at_the_end_of_an_epoch_is_one(classify, tmp_path, capsys, stopped):
    stopped['position']['step'] = 9
    torch.save(stopped, tmp_path / LAST)
    classify('--output', tmp_path, '--auto-resume', '--epochs', 1)


def test_statistics_of_a_process_must_fit(classify, tmp_path, capsys, stopped, monkeypatch):
    """Here the only process takes what is its own of a job's file of one."""
    stopped['processes'] = [{'statistics': {'bn3.running_mean': torch.zeros(16)}, 'metrics': None}]
    torch.save(stopped, tmp_path / LAST)
    error = classify.error(capsys, '--output', tmp_path, '--auto-resume')
    assert f'{tmp_path / LAST} does not fit the net: missing: ' in error


def test_stack_of_torch_is_not_told():
    stack = 'Exception raised from f at x.cc:1 (most recent call first):\nframe #0: c10::Error + 0x9 (0x7f in x.so)\n'
    assert ' '.join(str(UserError(f'x: failed\n{stack}')).split()) == 'x: failed'
    assert not CPP_STACK.search('a frame #3 of the film')


def test_whatever_torch_raises_is_one_line(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    for error in MemoryError(), RecursionError('deep'), IndexError('pop'), AssertionError(), TypeError('x'):
        monkeypatch.setattr(torch, 'load', lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(UserError, match=r'file: not a PyTorch checkpoint, or a damaged one: \w+'):
            checkpoint.read(tmp_path / 'file')


def test_list_that_holds_itself_has_an_end(tmp_path):
    content = released(*trained())
    content['optimizer']['param_groups'].append(content['optimizer']['param_groups'])
    torch.save(content, tmp_path / 'round')
    checkpoint.read(tmp_path / 'round')
