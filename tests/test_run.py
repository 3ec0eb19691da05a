"""A run and its folder: what a kill leaves, who may write, what is resumed."""

import os
import re

import pytest
import torch

from tests.checkpoints import killed_at
from tests.conftest import stop_at
from tests.runs import LAST, LAST_OF_VOC, assert_same, content, epochs
from utils import checkpoint, logger, trainer
from utils.device import Compute
from utils.logger import Log
from utils.run import Best, Files, Numbered
from utils.signals import Stopped


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Runs without what takes long in them and is not what the test is about."""
    monkeypatch.setattr(Log, 'draw', lambda log: None)
    monkeypatch.setattr(logger, 'git_commit', lambda: None)


@pytest.mark.parametrize('place', [2, 3])  # of epoch 2: the numbered file, the last
def test_run_killed_between_two_files_of_an_epoch_loses_neither(segment, tmp_path, monkeypatch, place):
    segment('--train', '--output', tmp_path / 'whole')
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, os, 'replace', place, '.pth')
        segment('--train')
    segment('--train', '--auto-resume')
    for name in LAST_OF_VOC, LAST_OF_VOC.replace('last', 'epoch2'):
        assert_same(content(tmp_path / 'run', name), content(tmp_path / 'whole', name))


def test_what_a_killed_run_left_half_written_is_removed(classify, tmp_path):
    names = [f'{LAST}.4677.tmp', 'model_best.pth.tar.12.tmp', 'other_checkpoint.pth.tar.12.tmp']
    for name in names:
        (tmp_path / name).write_bytes(b'half')
    classify('--output', tmp_path, '--epochs', 0)
    assert [name for name in names if (tmp_path / name).exists()] == names[2:]
    assert epochs(tmp_path)[0]['checkpoint'] == LAST


def test_which_files_are_of_a_run():
    files = Files('last', Best('best', 'err1', 'best_err1'), Numbered('{0}%s_', every=10))
    names = 'last', 'best', *(f'{{0}}%s_{number}.pth' for number in (0, 9, 10, 19, 20, 30, '010', '')), 'other_10.pth'
    for epochs_wanted, numbers in (19, [10, 19]), (20, [10, 20]), (10**12, [10, 20, 30]):  # without a look at each
        expected = ['last', 'best', *(f'{{0}}%s_{number}.pth' for number in numbers)]
        assert [name for name in names if files.include(name, epochs_wanted)] == expected


def test_second_run_in_a_folder_is_told_where_to_go(classify, small, folder, tmp_path, capsys):
    """Both nets would keep their best as model_best.pth.tar; --auto-resume finds only what is of the same net."""
    classify('--output', tmp_path, '--epochs', 1)
    best, last, own = tmp_path / 'model_best.pth.tar', tmp_path / LAST, 'give this one a folder of its own, --output'
    told = classify.error(capsys, '--output', tmp_path, '-a', 'small', '--auto-resume')
    assert told == f'error: {best} is of another run: {own} runs/small'
    told = classify.error(capsys, '--output', tmp_path)
    assert told == f'error: {last} is of another run: go on with it (--auto-resume), or {own} runs/tiny'
    for part in 'train', 'val':
        (folder / part / 'fox').rename(folder / part / 'gnu')
    told = classify.error(capsys, '--output', tmp_path, '--auto-resume')
    told_of_classes = 'its classes differ: fox where the data has gnu; give another --output'
    assert told == f'error: {last} cannot be resumed: {told_of_classes}'


def test_folder_is_locked_before_its_checkpoint_is_read(classify, tmp_path, monkeypatch):
    """Else a run that is just ending could write a newer one after it was read."""
    order = []
    for name in 'lock', 'find_checkpoint':
        original = getattr(trainer, name)
        monkeypatch.setattr(trainer, name, lambda *args, name=name, f=original: order.append(name) or f(*args))
    classify('--output', tmp_path, '--epochs', 0)
    assert order == ['lock', 'find_checkpoint']


def test_run_whose_devices_would_get_too_few_is_refused(segment, tmp_path, capsys, monkeypatch):
    """13 images on four devices are 4, 4, 4 and 1, which no net of two at least can be trained on."""
    monkeypatch.setattr(Compute, 'devices', 4)
    told = segment.error(capsys, '--train', '-b', 16)
    assert '13 training samples are fewer than one batch (--batch-size 16)' in told
    assert not (tmp_path / 'run').exists()


# What is resumed


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
        ({'step': 10}, ': its position is step 10 of an epoch of 36 samples'),
        ({'metrics': {}}, ": its metrics has another form: KeyError 'loss'"),
        ({'metrics': dict.fromkeys(('loss', 'err1', 'err5'), 3.0)}, ': its metrics has another form: '),
        ({'metrics': dict.fromkeys(('loss', 'err1', 'err5'), {'sum': 1, 'count': None})}, ': its metrics'),
        ({'statistics': {'bn3.running_mean': torch.zeros(16)}, 'metrics': None}, ' does not fit the net: missing: '),
    ],
)
def test_position_that_is_none_of_this_run(classify, tmp_path, capsys, stopped, change, told):
    processes = [change] if 'statistics' in change else None
    torch.save(stopped | {'processes': processes, 'position': stopped['position'] | change}, tmp_path / LAST)
    assert classify.error(capsys, '--output', tmp_path, '--auto-resume').startswith(f'error: {tmp_path / LAST}{told}')


@pytest.mark.parametrize('saved_epoch, expected', [(None, [2]), (0, [0, 1, 2])])
def test_start_epoch_counts_where_the_resumed_file_names_none(classify, tmp_path, stopped, saved_epoch, expected):
    torch.save({**stopped, 'position': None, 'epoch': saved_epoch}, tmp_path / 'file')
    classify('--output', tmp_path / 'run', '--resume', tmp_path / 'file', '--start-epoch', 2, '--epochs', 3)
    assert [record['epoch'] for record in epochs(tmp_path / 'run')[1:]] == expected
    assert checkpoint.read(tmp_path / 'run' / LAST).epoch == 3


def test_learning_rate_of_an_epoch_that_was_stopped_while_tested_is_its_own(classify, tmp_path, monkeypatch):
    arguments = '--output', tmp_path, '--decay-epochs', 1, '--auto-resume'
    classify(*arguments, '--epochs', 1)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer, 'evaluate', lambda *_: (_ for _ in ()).throw(Stopped(143)))
        classify(*arguments)
    classify(*arguments)
    assert [record['lr'] for record in epochs(tmp_path) if 'epoch' in record] == pytest.approx([0.05, 0.005])


def test_only_a_lower_error_is_a_better_one_and_the_first_is_the_best_so_far(classify, tmp_path, monkeypatch):
    """Also over a resume, and of epochs of which none gets anything right."""
    errors, best = iter([100.0, 100.0, 50.0, 50.0, 60.0]), []
    monkeypatch.setattr(trainer, 'evaluate', lambda *_: {'err1': next(errors)})
    for epochs_done in range(1, 6):
        classify('--output', tmp_path, '--epochs', epochs_done, '--auto-resume')
        best.append(checkpoint.read(tmp_path / 'model_best.pth.tar').epoch)
    assert best == [1, 1, 3, 3, 3]


@pytest.mark.parametrize('parts', [['1', '2'], ['2']])
def test_exponential_average_goes_on_over_epochs_and_resumes(segment, tmp_path, capsys, parts):
    for last in parts:
        segment('--train', '-p', 1, '--epochs', last, '--base-lr', 0, '--auto-resume')
    found = [tuple(map(float, pair)) for pair in re.findall(r'loss: (\S+) \((\S+)\)', capsys.readouterr().out)]
    assert len(found) == 6  # 13 images, the last of them dropped: three batches of four an epoch
    smooth = found[0][0]
    for loss, printed in found:
        smooth = 0.99 * smooth + 0.01 * loss
        assert printed == pytest.approx(smooth, abs=2e-4)


def test_segmenters_file_without_an_exponential_average_goes_on(segment, tmp_path):
    segment('--train', '--epochs', 1)
    path = tmp_path / 'run' / LAST_OF_VOC
    saved = torch.load(path, weights_only=True)
    del saved['smooth_loss']
    torch.save(saved, path)
    segment('--train', '--auto-resume')
    assert checkpoint.read(path).smooth_loss > 0
