"""A run: bit for bit the same wherever it was stopped or killed, its folder, what goes on from it or begins with it."""

import multiprocessing
import os
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from tests.checkpoints import killed_at
from tests.conftest import SETS, TinyNet, small_script, stop_at
from tests.runs import LAST, LAST_OF_COCO, LAST_OF_VOC, assert_same, content, epochs
from utils import checkpoint, files, logger, trainer
from utils.device import Compute
from utils.signals import Stopped

SAVED_BEFORE = Path(__file__).parent / 'golden' / 'saved_before'
LASTS = {'classify': LAST, 'multilabel_classify': LAST_OF_COCO, 'segment': LAST_OF_VOC}


@pytest.fixture(autouse=True)
def quick(undrawn, monkeypatch):
    """Without curves and without git, which take longer than some of these runs."""
    monkeypatch.setattr(logger, 'git_commit', lambda: None)


# The script, the number of the picture at which the signal comes, half of it in the first of two workers, and workers.
STOPS = [
    ('classify', 20, SIGINT, 2),  # inside the first epoch
    ('classify', 47, SIGTERM, 0),  # while validating, where the learning rate is still the epoch's own
    ('multilabel_classify', 7, SIGTERM, 0),
    ('segment', 20, SIGTERM, 0),  # in the second epoch
    *(
        pytest.param(name, call, SIGTERM, workers, marks=pytest.mark.slow)
        for name, calls in (('classify', (3, 17, 46, 60)), ('multilabel_classify', (6, 25)), ('segment', (7, 19)))
        for call in calls
        for workers in (0, 2)
    ),
]


@pytest.mark.parametrize('name, call, number, workers', STOPS)
def test_stopped_run_goes_on(undisturbed, tiny, tmp_path, monkeypatch, capsys, name, call, number, workers):
    train, whole, _ = undisturbed(name)
    last, arguments = LASTS[name], ['--output', tmp_path, '--workers', workers]
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        stop_at(patch, call // (workers or 1), number)
        train(*arguments)
    assert stopped.value.code == 128 + number
    told = rf'=> {Signals(number).name}: saved at epoch \d, step \d+; --resume {tmp_path / last} goes on'
    assert re.search(told, capsys.readouterr().out)
    train(*arguments, '--auto-resume')
    assert_same(content(tmp_path, last), content(whole, last))
    assert checkpoint.read(tmp_path / last).smooth_loss == checkpoint.read(whole / last).smooth_loss
    assert [record for record in epochs(tmp_path) if 'epoch' in record] == epochs(whole)[1:]


@pytest.mark.parametrize('name', SETS)
def test_file_of_the_code_before_its_modules_moved_goes_on_as_there(name, tiny, tmp_path):
    """Stopped inside its first epoch; up to rounding, which differs between processors (on one: bit for bit)."""
    script = small_script(name, SETS[name](tmp_path / 'set'))
    flags = ['--train'] if name == 'segment' else []
    script(*flags, '--output', tmp_path / 'run', '--resume', SAVED_BEFORE / f'{name}_stopped.pth')
    now, then = content(tmp_path / 'run', LASTS[name]), content(SAVED_BEFORE, f'{name}_finished.pth')
    torch.testing.assert_close(now, then, rtol=1e-3, atol=1e-5)


KILLS = [  # the script, and what it does not get to do
    ('segment', os, 'replace', 2, '.pth'),  # the numbered file of epoch 2
    ('segment', os, 'replace', 3, '.pth'),  # its last
    ('classify', os, 'replace', 3, '.tar'),  # the last file of epoch 1, after the best
    ('classify', trainer, 'evaluate', 1, ''),
]


@pytest.mark.parametrize('name, module, function, number, suffix', KILLS)
def test_killed_run_goes_on(undisturbed, tiny, tmp_path, monkeypatch, name, module, function, number, suffix):
    """From what was saved before: an epoch's training and the files of the one before it are not lost."""
    train, whole, _ = undisturbed(name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, module, function, number, suffix)
        train('--output', tmp_path)
    monkeypatch.setattr(trainer, 'train_epoch', counted := Mock(wraps=trainer.train_epoch))
    train('--output', tmp_path, '--auto-resume', '--resume', whole / LASTS[name])  # its own goes first
    assert counted.call_count == 2 - (name == 'segment')
    names = [LAST_OF_VOC, LAST_OF_VOC.replace('last', 'epoch2')] if name == 'segment' else [LAST, 'model_best.pth.tar']
    for file in names:
        assert_same(content(tmp_path, file), content(whole, file))


def test_a_run_whose_lines_nobody_reads_any_more_is_saved_first(undisturbed, tiny, tmp_path, monkeypatch):
    train, whole, _ = undisturbed('classify')
    reader, writer = os.pipe()
    with monkeypatch.context() as patch, open(writer, 'w') as gone, redirect_stdout(gone):
        stop_at(patch, 1, end=lambda: os.close(reader))
        with pytest.raises(Stopped, match='143'):
            train('--output', tmp_path)
    assert checkpoint.read(tmp_path / LAST).position['step'] == 2
    train('--output', tmp_path, '--auto-resume')
    assert_same(content(tmp_path, LAST), content(whole, LAST))


def test_a_lack_of_memory_is_told_in_a_line(undisturbed, classify, tmp_path, monkeypatch, capsys):
    """Also of a GPU's while a file is taken up, which is not the file's fault."""
    run = shutil.copytree(undisturbed('classify').folder, tmp_path / 'run')
    with monkeypatch.context() as patch:
        lack = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has')
        patch.setattr('utils.run.load_optimizer', Mock(side_effect=lack))
        told = classify.error(capsys, '--output', run, '--auto-resume', '--epochs', 3)
        assert told.startswith('error: out of memory, as 2.00 GiB more')
    monkeypatch.setattr(TinyNet, 'forward', lambda net, x: torch.empty(10**14))
    told = classify.error(capsys, '--output', tmp_path)
    assert 'out of memory, as 400000000000000 bytes more were needed: smaller batches' in told


def test_what_a_net_draws_is_the_same_in_a_resumed_run(classify, tmp_path, monkeypatch):
    """As for dropout, which nets of libraries have."""
    forward, seeds = TinyNet.forward, {run: [] for run in 'abc'}
    for run, last in ('a', 2), ('b', 1), ('b', 2), ('c', 2):

        def dropping(net, x, own=seeds[run]):
            own += [torch.initial_seed()] * net.training
            return F.dropout(forward(net, x), training=net.training)

        monkeypatch.setattr(TinyNet, 'forward', dropping)
        classify('--output', tmp_path / run, '--auto-resume', '--epochs', last, '--seed', int(run == 'c'))
    assert_same(content(tmp_path / 'a'), content(tmp_path / 'b'))
    assert seeds['a'] == seeds['b'] and len({*seeds['a'], *seeds['c']}) == 2 * 2 * 9


# Whose the folder is


def test_output_is_in_use_by_a_process_until_it_ends(classify, tmp_path, capsys, monkeypatch):
    """That is told before a checkpoint is read: a run that is just ending could write a newer one."""
    monkeypatch.setattr(trainer, 'find_checkpoint', None)
    held = []  # by the other process
    with multiprocessing.get_context('fork').Pool(1, lambda: held.append(files.lock(tmp_path))) as other:
        other.apply(int)  # once it has it
        assert f'{tmp_path} is in use by another run' in classify.error(capsys, '--output', tmp_path)
    files.lock(tmp_path).close()


def test_what_a_killed_run_left_half_written_is_removed(classify, tmp_path):
    files = LAST, 'model_best.pth.tar', 'curves.png', 'other_checkpoint.pth.tar'
    for name in (names := [f'{file}.12.tmp' for file in files]):
        (tmp_path / name).write_bytes(b'half')
    classify('--output', tmp_path, '--epochs', 0)
    assert [name for name in names if (tmp_path / name).exists()] == names[3:]
    assert epochs(tmp_path)[0]['checkpoint'] == LAST


@pytest.mark.parametrize(
    'arguments, told',
    [
        ('-a small --evaluate --resume {last}', '{last}: a checkpoint of tiny, not of --arch small'),
        # Both keep their best under one name.
        ('-a small --auto-resume', '{best} is of another run: give this one a folder of its own, --output runs/small'),
        ('', '{last} is of another run: go on with it (--auto-resume), or give this one a folder of its own, --output'),
        ('--auto-resume', '{last} cannot be resumed: its classes differ: fox where the data has gnu; give another '),
    ],
)
def test_checkpoints_of_another_net_run_or_classes_stay(undisturbed, classify, small, folder, capsys, arguments, told):
    for part in 'train', 'val':
        (folder / part / 'fox').rename(folder / part / 'gnu')
    run = undisturbed('classify').folder
    places = {'last': run / LAST, 'best': run / 'model_best.pth.tar'}
    before = [path.read_bytes() for path in places.values()]
    error = classify.error(capsys, *arguments.format(**places).split(), '--output', run)
    assert error.startswith(f'error: {told.format(**places)}')
    assert [path.read_bytes() for path in places.values()] == before


def test_what_is_evaluated_is_what_is_named_not_the_runs_own_last(undisturbed, tiny, tmp_path, capsys):
    script, run, _ = undisturbed('classify')
    arguments = '--evaluate', '--auto-resume', '--output', run
    assert script.error(capsys, *arguments, '--resume', tmp_path / 'no') == f'error: no checkpoint at {tmp_path}/no'
    assert script.error(capsys, *arguments, '--resume', run) == f'error: {run} is a folder, no checkpoint'
    assert script(*arguments) == script('--evaluate', '--resume', run / LAST)


def test_a_run_stopped_in_its_first_epoch_does_not_go_on_over_the_best_of_a_net_begun_there_since(
    classify, small, tmp_path, stopped, capsys
):
    classify('--output', tmp_path, '-a', 'small', '--epochs', 1)
    best = tmp_path / 'model_best.pth.tar'
    for old in False, True:  # from before files bore a word of their run
        for path in (best, tmp_path / LAST) if old else ():
            torch.save(torch.load(path, weights_only=True) | {'run': None}, path)
        before = best.read_bytes()
        told = f'error: {best} is of another run: give this one a folder of its own'
        assert classify.error(capsys, '--output', tmp_path, '--auto-resume').startswith(told)
        assert best.read_bytes() == before
    torch.save(torch.load(best, weights_only=True) | {'arch': None}, best)
    classify('--output', tmp_path, '--auto-resume')


def test_an_epoch_that_was_not_tested_is_tested_in_other_batches(classify, tmp_path, monkeypatch):
    """As if memory had not been enough for those before; it is not trained again."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, trainer, 'evaluate', 1)
        classify('--output', tmp_path)
    before = content(tmp_path)
    classify('--output', tmp_path, '--auto-resume', '-b', 4, '--epochs', 1)
    assert_same(content(tmp_path), before)
    assert checkpoint.read(tmp_path / LAST).epoch == 1 and len(epochs(tmp_path)) == 3  # two starts


def test_sync_bn_refuses_norms_that_it_would_not_keep(classify, monkeypatch, capsys):
    """With a GPU and other processes that are only told of."""
    monkeypatch.setattr(trainer, 'Compute', lambda *_, **__: Mock(device=torch.device('cuda'), devices=1))
    monkeypatch.setattr(trainer, 'is_distributed', lambda: True)
    told = 'knows only batch norms of PyTorch, and timm/regnety_002 has others: BatchNormAct2d'
    assert told in classify.error(capsys, '--sync-bn', '-a', 'timm/regnety_002')


def test_a_file_from_elsewhere_does_not_go_on_over_a_run(undisturbed, classify, tmp_path, capsys):
    run = shutil.copytree(undisturbed('classify').folder, tmp_path / 'run')
    outside, inside = (shutil.copy(run / LAST, tmp_path / place / 'copy') for place in ('', 'run'))
    told = f'error: {run / LAST} is of another run: go on with it (--auto-resume), or give this one a folder of its own'
    assert classify.error(capsys, '--output', run, '--resume', outside).startswith(told)
    classify('--output', run, '--resume', inside)


def test_a_file_of_another_run_in_the_folder_does_not_go_on_over_a_run(segment, tmp_path, capsys):
    last = {exp: tmp_path / 'run' / f'deeplab_tiny_pascal_v3_{exp}_last.pth' for exp in ('other', 'mine', 'fork')}
    segment('--train', '--exp', 'other', '--epochs', 1)
    segment('--train', '--epochs', 1, '--seed', 7)
    segment('--train', '--exp', 'fork', '--epochs', 2, '--resume', last['other'])  # from then on a run of its own
    before = {path: path.read_bytes() for path in last.values()}
    for exp, resumed in ('mine', 'other'), ('fork', 'other'), ('other', 'fork'):
        told = segment.error(capsys, '--train', '--exp', exp, '--epochs', 3, '--resume', last[resumed])
        assert told.startswith(f'error: {last[exp]} is of another run')
    assert {path: path.read_bytes() for path in last.values()} == before
    last['fork'].write_bytes(b'damaged')
    told = segment.error(capsys, '--train', '--exp', 'fork', '--epochs', 2, '--resume', last['other'])
    assert 'fork_epoch2.pth is of another run' in told
    (tmp_path / 'run' / 'deeplab_tiny_pascal_v3_fork_epoch3.pth').symlink_to('nowhere')
    segment('--train', '--exp', 'fork', '--epochs', 3, '--resume', str(last['fork']).replace('last', 'epoch2'))


def test_run_whose_devices_would_get_too_few_is_refused(segment, tmp_path, capsys, monkeypatch):
    """13 images on four devices are 4, 4, 4 and 1, which no net of two at least can be trained on."""
    monkeypatch.setattr(Compute, 'devices', 4)
    told = segment.error(capsys, '--train', '-b', 16)
    assert '13 training samples are fewer than one batch (--batch-size 16)' in told
    assert not (tmp_path / 'run').exists()


# What is resumed, and what is transferred


@pytest.fixture
def stopped(classify, tmp_path, monkeypatch):
    """What a run that was stopped inside its first epoch of nine steps saved, to be changed."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 10)
        classify('--output', tmp_path)
    return torch.load(tmp_path / LAST, weights_only=True)


@pytest.mark.parametrize(
    'arguments, change, told',
    [
        ('--seed 2', {}, ' was trained with --seed 0, not 2: leave --seed out'),
        ('-b 4', {}, ' was saved inside an epoch of samples 36, micro-batch 4, accumulate 2; '),
        ('', {'step': 10}, ': its position is step 10 of an epoch of 36 samples'),
        ('', {'step': -1}, ': its position is step -1 of an epoch of 36 samples'),
        ('', {'plan': 5}, " has another form: 'int' object has no attribute 'items'"),
        ('', {'metrics': {}}, ": its metrics has another form: KeyError 'loss'"),
        ('', {'metrics': {'loss': {'sum': 1, 'count': None}}}, ': its metrics has another form: '),
        ('', {'statistics': {'bn3.running_mean': torch.zeros(16)}, 'metrics': None}, ' does not fit the net: missing'),
    ],
)
def test_position_that_is_none_of_this_run(classify, tmp_path, capsys, stopped, arguments, change, told):
    processes = [change] if 'statistics' in change else None
    torch.save(stopped | {'processes': processes, 'position': stopped['position'] | change}, tmp_path / LAST)
    error = classify.error(capsys, '--output', tmp_path, '--auto-resume', *arguments.split())
    assert error.startswith(f'error: {tmp_path / LAST}{told}')


@pytest.mark.parametrize('saved_epoch, expected', [(None, [2]), (0, [0, 1, 2])])
def test_start_epoch_counts_where_the_resumed_file_names_none(classify, tmp_path, stopped, saved_epoch, expected):
    torch.save({**stopped, 'position': None, 'epoch': saved_epoch}, tmp_path / 'file')
    classify('--output', tmp_path / 'run', '--resume', tmp_path / 'file', '--start-epoch', 2, '--epochs', 3)
    assert [record['epoch'] for record in epochs(tmp_path / 'run')[1:]] == expected
    assert checkpoint.read(tmp_path / 'run' / LAST).epoch == 3


def test_only_a_lower_error_is_a_better_one_and_the_first_is_the_best_so_far(classify, tmp_path, monkeypatch):
    """Also over a resume, and of epochs of which none gets anything right."""
    errors, best = iter([(100.0, 2.0), (100.0, 2.0), (50.0, 1.0), (50.0, 1.0), (60.0, 1.0), (0.0, float('nan'))]), []
    monkeypatch.setattr(trainer, 'evaluate', lambda *_: dict(zip(('err1', 'loss'), next(errors), strict=True)))
    for epochs_done in range(1, 7):
        classify('--output', tmp_path, '--epochs', epochs_done, '--auto-resume')
        best.append(checkpoint.read(tmp_path / 'model_best.pth.tar').epoch)
    assert best == [1, 1, 3, 3, 3, 3]


def test_exponential_average_goes_on_over_epochs_and_resumes(segment, capsys):
    for last in 1, 3:
        segment('--train', '-p', 1, '--epochs', last, '--base-lr', 0, '--auto-resume')
    found = [tuple(map(float, pair)) for pair in re.findall(r'loss: (\S+) \((\S+)\)', capsys.readouterr().out)]
    assert len(found) == 9  # 13 images, the last of them dropped: three batches of four an epoch
    smooth = found[0][0]
    for loss, printed in found:
        smooth = 0.99 * smooth + 0.01 * loss
        assert printed == pytest.approx(smooth, abs=2e-4)


@pytest.mark.parametrize(
    'name, place, left, told',
    [
        ('classify', '', 'fc', 'its classes differ: ant where the data has ape'),
        ('multilabel_classify', '', 'fc', 'its task is imagenet, not coco'),
        ('segment', 'base.', 'score, base.fc', 'its task is imagenet, not voc'),
    ],
)
def test_classifier_is_transferred_and_not_evaluated(undisturbed, tiny, tmp_path, capsys, name, place, left, told):
    source, voc = undisturbed('classify').folder / LAST, name == 'segment'
    script = small_script(name, SETS[name](tmp_path / 'set'))
    for folder in tmp_path.glob('set/*/ant'):
        folder.rename(folder.with_name('ape'))
    still = ['--train', '--base-lr', 0] if voc else ['--lr', 0]
    script('--resume', source, '--output', tmp_path, '--epochs', 1, *still)
    assert f'=> transferred {source}; left out, as initialised: {left}\n' in capsys.readouterr().out
    ours, theirs = (checkpoint.read(path).state_dict for path in (tmp_path / LASTS[name], source))
    assert torch.equal(ours[f'{place}conv1.weight'], theirs['conv1.weight'])
    error = script.error(capsys, '--resume', source, *([] if voc else ['--evaluate']))
    assert f'cannot be evaluated here: {told}' in error
