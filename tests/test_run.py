"""A run and its folder: what a kill between two files leaves, who may write, what the log and its curves tell."""

import os
import re

import pytest
import torch

from tests.conftest import stop_at
from tests.runs import LAST, LAST_OF_VOC, assert_same, content, epochs
from utils import checkpoint, reporting, task
from utils.compute import Compute
from utils.errors import UserError
from utils.interrupt import Stopped
from utils.reporting import Log
from utils.run import Best, Files, Numbered


def killed_at(monkeypatch, place, suffix):
    """The process ends in place of the file of this suffix that would be put in place as number `place`."""
    replace, names = os.replace, []

    def counting(source, target):
        names.append(target.name) if target.name.endswith(suffix) else None
        if len(names) == place:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, 'replace', counting)


@pytest.mark.parametrize('place', [2, 3])  # of epoch 2: the numbered file, the last
def test_run_killed_between_two_files_of_an_epoch_loses_neither(segment, tmp_path, monkeypatch, place):
    numbered = LAST_OF_VOC.replace('last', 'epoch2')
    segment('--train', '--output', tmp_path / 'whole')
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, place, '.pth')
        segment('--train')
    segment('--train', '--auto-resume')
    for name in LAST_OF_VOC, numbered:
        assert_same(content(tmp_path / 'run', name), content(tmp_path / 'whole', name))


def test_disk_that_is_full_at_the_second_file_leaves_both_old_ones(tmp_path, monkeypatch):
    paths, saved, fsync = [tmp_path / name for name in 'ab'], [], os.fsync

    def full_at_the_second(handle):
        saved.append(handle)
        if len(saved) == 2:
            raise OSError(28, 'No space left on device')
        fsync(handle)

    for path in paths:
        path.write_text('old')
    monkeypatch.setattr(os, 'fsync', full_at_the_second)
    with pytest.raises(UserError, match=f'cannot write {paths[1]}'):
        checkpoint.write({'state_dict': {}}, *paths)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'a': 'old', 'b': 'old'}


def test_what_a_killed_run_left_half_written_is_removed(classify, tmp_path):
    names = [f'{LAST}.4677.tmp', 'model_best.pth.tar.12.tmp', 'other_checkpoint.pth.tar.12.tmp']
    for name in names:
        (tmp_path / name).write_bytes(b'half')
    classify('--output', tmp_path, '--epochs', 0)
    assert [name for name in names if (tmp_path / name).exists()] == names[2:]


def test_second_net_in_a_folder_is_told_where_to_go(classify, small, tmp_path, capsys):
    """Both would keep their best as model_best.pth.tar, and there is nothing that --auto-resume could go on with."""
    classify('--output', tmp_path, '--epochs', 1)
    told = classify.error(capsys, '--output', tmp_path, '-a', 'small', '--auto-resume')
    best = tmp_path / 'model_best.pth.tar'
    assert told == f'error: {best} is of another run: give this one a folder of its own, --output runs/small'
    told = classify.error(capsys, '--output', tmp_path)
    cure = 'go on with it (--auto-resume), or give this one a folder of its own, --output runs/tiny'
    assert told == f'error: {tmp_path / LAST} is of another run: {cure}'


@pytest.mark.parametrize('name', ['{}', '{0.__class__}', '}{', '%s'])
def test_experiment_may_have_any_name(segment, tmp_path, name):
    segment('--train', '--epochs', 1, '--exp', name)
    ends = 'epoch1', 'last'
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth')) == [
        f'deeplab_tiny_pascal_v3_{name}_{end}.pth' for end in ends
    ]
    segment('--epochs', 1, '--exp', name)


def test_run_of_many_epochs_looks_only_at_files_that_are_there(segment, tmp_path, capsys, monkeypatch):
    name, calls = Numbered.name, []
    monkeypatch.setattr(Numbered, 'name', lambda self, epochs: calls.append(epochs) or name(self, epochs))
    numbered, half = (tmp_path / 'run' / LAST_OF_VOC.replace('last', part) for part in ('epoch50', 'epoch60'))
    half = half.with_name(f'{half.name}.12.tmp')
    numbered.parent.mkdir()
    for path in numbered, half:
        path.touch()
    assert f'{numbered} is of another run: give' in segment.error(capsys, '--train', '--epochs', 100_000)
    numbered.unlink()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 1)
        segment('--train', '--epochs', 100_000)
    assert not half.exists()
    assert len(calls) < 10


@pytest.mark.parametrize(
    'name, epochs, included',
    [
        ('last', 1, True),
        ('best', 1, True),
        ('run_10.pth', 10, True),
        ('run_10.pth', 9, False),
        ('run_9.pth', 9, True),
        ('run_9.pth', 10, False),
        ('run_0.pth', 10, False),
        ('run_010.pth', 10, False),
        ('run_.pth', 10, False),
        ('other_10.pth', 10, False),
    ],
)
def test_which_files_are_of_a_run(name, epochs, included):
    files = Files('last', Best('best', 'err1', 'best_err1'), Numbered('run_', every=10))
    assert files.include(name, epochs) == included


def test_folder_is_locked_before_its_checkpoint_is_read(classify, tmp_path, monkeypatch):
    """Else a run that is just ending could write a newer one after it was read."""
    order = []
    for name in 'lock', 'find_checkpoint':
        original = getattr(task, name)
        monkeypatch.setattr(task, name, lambda *args, name=name, f=original: order.append(name) or f(*args))
    classify('--output', tmp_path, '--epochs', 0)
    assert order == ['lock', 'find_checkpoint']


def test_learning_rate_of_an_epoch_that_was_stopped_while_tested_is_its_own(classify, tmp_path, monkeypatch):
    def stopped(*_):
        raise Stopped(143)

    classify('--output', tmp_path, '--decay-epochs', 1, '--epochs', 1)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(task, 'evaluate', stopped)
        classify('--output', tmp_path, '--decay-epochs', 1, '--auto-resume')
    classify('--output', tmp_path, '--decay-epochs', 1, '--auto-resume')
    assert [record['lr'] for record in epochs(tmp_path) if 'epoch' in record] == pytest.approx([0.05, 0.005])


def test_only_a_lower_error_is_a_better_one_and_the_first_is_the_best_so_far(classify, tmp_path, monkeypatch):
    """Also over a resume, and of epochs of which none gets anything right."""
    errors = iter([100.0, 100.0, 50.0, 50.0, 60.0, 50.0])
    monkeypatch.setattr(task, 'evaluate', lambda *_: {'err1': next(errors)})
    best = []
    for epochs_done in range(1, 7):
        classify('--output', tmp_path, '--epochs', epochs_done, '--auto-resume')
        best.append(checkpoint.read(tmp_path / 'model_best.pth.tar').epoch)
    assert best == [1, 1, 3, 3, 3, 3]


def losses_of(out):
    """(loss, exponential average) of each line of segment.py's training."""
    return [tuple(map(float, pair)) for pair in re.findall(r'loss: (\S+) \((\S+)\)', out)]


@pytest.mark.parametrize('parts', [['1', '2'], ['2']])
def test_exponential_average_goes_on_over_epochs_and_resumes(segment, tmp_path, capsys, parts):
    for last in parts:
        segment('--train', '-p', 1, '--epochs', last, '--base-lr', 0, '--auto-resume')
    found = losses_of(capsys.readouterr().out)
    assert len(found) == 6
    smooth = found[0][0]
    for loss, printed in found:
        smooth = 0.99 * smooth + 0.01 * loss
        assert printed == pytest.approx(smooth, abs=2e-4)
    means = [record['train']['loss'] for record in epochs(tmp_path / 'run') if 'epoch' in record]
    # 13 images, the last of them dropped: three batches of four an epoch
    assert means == pytest.approx([sum(loss for loss, _ in part) / 3 for part in (found[:3], found[3:])], abs=1e-4)
    assert checkpoint.read(tmp_path / 'run' / LAST_OF_VOC).smooth_loss == pytest.approx(smooth, abs=2e-4)


def test_segmenters_file_without_an_exponential_average_goes_on(segment, tmp_path, capsys):
    segment('--train', '-p', 1, '--epochs', 1)
    path = tmp_path / 'run' / LAST_OF_VOC
    saved = torch.load(path, weights_only=True)
    del saved['smooth_loss']
    torch.save(saved, path)
    capsys.readouterr()
    segment('--train', '-p', 1, '--auto-resume')
    first, *_ = losses_of(capsys.readouterr().out)
    assert first[0] == first[1]


@pytest.mark.parametrize('every, lines', [(1, ['2/3', '3/3']), (2, ['2/3', '3/3']), (9, ['2/3', '3/3'])])
def test_last_line_of_segments_evaluation_always_appears(segment, tmp_path, capsys, every, lines):
    segment('--train', '--epochs', 1)
    capsys.readouterr()
    segment('--epochs', 1, '-p', every)
    assert re.findall(r'eval: (.*)', capsys.readouterr().out) == lines


def test_start_epoch_counts_where_the_resumed_file_names_none(classify, tmp_path):
    classify('--output', tmp_path / 'one', '--epochs', 1)
    saved = torch.load(tmp_path / 'one' / LAST, weights_only=True)
    for name, epoch, start, expected in ('none', None, 2, [2]), ('own', 1, 2, [1, 2]), ('zero', 0, 2, [0, 1, 2]):
        content = {key: value for key, value in (saved | {'epoch': epoch}).items() if value is not None}
        torch.save(content, tmp_path / name)
        run = tmp_path / f'run_{name}'
        classify('--output', run, '--resume', tmp_path / name, '--start-epoch', start, '--epochs', 3)
        assert [record['epoch'] for record in epochs(run) if 'epoch' in record] == expected
        assert checkpoint.read(run / LAST).epoch == 3


def test_curves_are_of_one_run(tmp_path):
    log = Log(tmp_path)

    def ran(name, begin, *losses):
        log.start({}, name, from_epoch=begin)
        for epoch, loss in enumerate(losses, begin):
            log.note(epoch=epoch, train={'loss': loss})
        return [record['train']['loss'] for record in log.epochs()]

    assert ran('a', 0, 9.0, 8.0, 7.0) == [9, 8, 7]
    assert ran('b', 0, 6.0) == [6]
    assert ran('b', 1, 5.0) == [6, 5]
    assert ran('a', 3, 4.0) == [9, 8, 7, 4]
    assert ran('a', 1, 3.0) == [9, 3]  # from an older checkpoint
    assert ran('a', 0) == []


def test_curves_show_what_there_is(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(reporting, 'write_figure', lambda figure, *_, **__: drawn.extend(figure.axes))
    trained_only = [{'epoch': epoch, 'train': {'loss': 1.0 - epoch / 2}} for epoch in range(2)]
    reporting.draw_curves(trained_only, tmp_path / 'curves.png')
    (panel,) = drawn
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ['train']
    assert panel.lines[0].get_xydata().tolist() == [[1, 1], [2, 0.5]]
    assert all(tick == int(tick) for tick in panel.get_xticks())


def test_log_names_the_checkpoint(classify, tmp_path):
    classify('--output', tmp_path, '--epochs', 0)
    assert epochs(tmp_path)[0]['checkpoint'] == LAST


def test_resumed_run_that_is_over_says_so(classify, tmp_path, capsys):
    classify('--output', tmp_path, '--epochs', 1)
    capsys.readouterr()
    classify('--output', tmp_path, '--epochs', 1, '--auto-resume')
    assert '=> nothing to train: 1 epochs are done, and --epochs is 1\n' in capsys.readouterr().out


def test_own_checkpoint_of_other_classes_is_told_apart(classify, folder, tmp_path, capsys):
    classify('--output', tmp_path, '--epochs', 1)
    for part in 'train', 'val':
        (folder / part / 'fox').rename(folder / part / 'gnu')
    told = f'{tmp_path / LAST} cannot be resumed: its classes differ: fox where the data has gnu; give another --output'
    assert told in classify.error(capsys, '--output', tmp_path, '--auto-resume')


def test_run_whose_devices_would_get_too_few_is_refused(segment, tmp_path, capsys, monkeypatch):
    """13 images on four devices are 4, 4, 4 and 1, which no net of two at least can be trained on."""
    monkeypatch.setattr(Compute, 'devices', 4)
    told = segment.error(capsys, '--train', '-b', 16)
    assert '13 training samples are fewer than one batch (--batch-size 16)' in told
    assert not (tmp_path / 'run').exists()
