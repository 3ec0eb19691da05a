"""A run that was stopped anywhere and goes on is the one that nothing stopped, bit for bit; one handed on to a task."""

import re
from signal import SIGINT, SIGTERM, Signals

import pytest
import torch

from tests.conftest import SETS, small_script, stop_at
from tests.runs import LAST, LAST_OF_COCO, LAST_OF_VOC, assert_same, content, epochs
from utils import checkpoint
from utils.run import Run
from utils.signals import Stopped

pytestmark = pytest.mark.usefixtures('undrawn')
LASTS = {'classify': LAST, 'multilabel_classify': LAST_OF_COCO, 'segment': LAST_OF_VOC}
# The script, the number of the picture at which the signal comes, half of it in the first of two workers, and workers.
STOPS = [
    ('classify', 20, SIGINT, 2),  # inside the first epoch
    ('classify', 47, SIGTERM, 0),  # while validating
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
def test_stopped_and_resumed_run_is_bit_identical(
    undisturbed, tiny, tmp_path, monkeypatch, capsys, name, call, number, workers
):
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


def test_run_killed_after_saving_inside_an_epoch_and_called_twice_is_bit_identical(
    undisturbed, classify, tmp_path, monkeypatch
):
    saved, save = [], Run.save

    def recording(run, *names):
        saved.append((run.epoch, run.step))
        if run.step == 6:
            raise KeyboardInterrupt  # killed before it could save again
        save(run, *names)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, 'save', recording)
        classify('--output', tmp_path, '--save-steps', 1)
    assert saved == [(0, 2), (0, 4), (0, 6)]
    for wanted in 1, 2:
        classify('--resume', tmp_path / LAST, '--output', tmp_path, '--epochs', wanted)
    assert_same(content(tmp_path), content(undisturbed('classify').folder))


def test_other_batches_inside_an_epoch(classify, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 10)
        classify('--output', tmp_path)
    error = classify.error(capsys, '--output', tmp_path, '--auto-resume', '-b', 4)
    assert 'was saved inside an epoch of samples 36, micro-batch 4, accumulate 2' in error


def test_another_seed_is_another_run(undisturbed, classify, tmp_path):
    classify('--output', tmp_path, '--seed', 4)
    found, other = content(tmp_path), content(undisturbed('classify').folder)
    assert not any(torch.equal(found[name], other[name]) for name in found if name.endswith('weight'))


@pytest.mark.parametrize(
    'name, place, left, told',
    [
        ('classify', '', 'fc', 'its classes differ: ant where the data has ape'),
        ('multilabel_classify', '', 'fc', 'its task is imagenet, not coco'),
        ('segment', 'base.', 'score, base.fc', 'its task is imagenet, not voc'),
    ],
)
def test_classifier_of_another_task_or_other_classes_is_transferred_and_not_evaluated(
    undisturbed, tiny, tmp_path, capsys, name, place, left, told
):
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
