"""classify.py and docker_classify.py on a small folder: printed lines, files, and what a user did wrong in one line."""

import multiprocessing
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

import docker_classify
from tests.conftest import Script
from tests.runs import LAST, MEASURED, PAIR, content, epochs
from utils import device as compute
from utils import files as output
from utils import trainer
from utils.errors import UserError
from utils.run import Run

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason='here is a GPU')


def test_printed_lines_have_the_form_of_the_reference(undisturbed):
    lines = undisturbed('classify').lines
    train = [re.fullmatch(rf'Epoch: \[(\d)\]\[(\d+)/(\d+)\]\tTime {PAIR}\tData {PAIR}\t{MEASURED}', x) for x in lines]
    assert [m.groups() for m in train if m] == [(e, i, '9') for e in '01' for i in '036']
    test = [re.fullmatch(rf'Test: \[(\d+)/(\d+)\]\tTime {PAIR}\t{MEASURED}', line) for line in lines]
    assert [m.groups() for m in test if m] == 2 * [('0', '5'), ('3', '5')]
    assert len([line for line in lines if re.fullmatch(r' \* Err@1 \d+\.\d{3} Err@5 \d+\.\d{3}', line)]) == 2
    assert len(lines) == 1 + 6 + 4 + 2


def test_checkpoint_and_log(undisturbed):
    folder = undisturbed('classify').folder
    start, *rest = epochs(folder)
    assert start['args']['lr'] == 0.05
    assert {'git', 'torch', 'device'} <= start.keys()
    assert [record['epoch'] for record in rest] == [0, 1]
    assert all(set(record[part]) == {'loss', 'err1', 'err5'} for record in rest for part in ('train', 'val'))
    saved = torch.load(folder / LAST, weights_only=True)
    assert (saved['epoch'], saved['arch'], saved['task'], saved['seed']) == (2, 'tiny', 'imagenet', 0)
    assert saved['classes'] == ['ant', 'bee', 'cat', 'dog', 'eel', 'fox']
    assert all(name.startswith('module.') for name in saved['state_dict'])
    assert saved['best_err1'] == min(record['val']['err1'] for record in rest)
    assert saved['position'] is None


def test_evaluation_needs_val_only_repeats_what_training_printed_and_writes_nothing(
    undisturbed, classify, folder, tmp_path, monkeypatch, capsys
):
    run = undisturbed('classify')
    shutil.rmtree(folder / 'train')
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    classify('--evaluate', '--resume', run.folder / LAST, '-b', 18)
    assert capsys.readouterr().out.splitlines()[-1] == run.lines[-1]
    assert not list(Path().iterdir())


def test_docker_classify_as_one_process_uses_one_gpu_and_classify_all(classify, monkeypatch, capsys):
    """With GPUs that are only counted: what they would be used for is seen before the net is placed."""
    docker = Script(docker_classify, classify.shared[0], ' '.join(classify.shared[1:]))
    assert 'fewer than one batch (--batch-size 20 on --num-gpus 2)' in docker.error(capsys, '-b', 20)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(compute, 'set_up_gpu', lambda device, tf32: None)
    seen = []

    def look(_task, _args, found, micro_batch, _batch_size):
        seen.append((found.devices, str(found.device), micro_batch))
        raise UserError('seen')

    monkeypatch.setattr(trainer, 'check_training', look)
    for script in classify, docker:
        with pytest.raises(UserError, match='seen'):
            script('-g', 4, '--device', 'auto')
    assert seen == [(4, 'cuda', 8), (1, 'cuda:0', 8)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on CPU')
def test_compiled_net_trains_to_the_same_weights(undisturbed, classify, tmp_path):
    classify('--output', tmp_path, '--compile')
    compiled = content(tmp_path)
    for name, value in content(undisturbed('classify').folder).items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


# What a user did wrong


@pytest.mark.parametrize(
    'arguments, told',
    [
        ('-a resnet', 'invalid choice'),
        ('-b 0', 'invalid positive value'),
        ('--image-size 31', 'invalid at_least_32 value'),
        ('--lr nan', 'invalid nonnegative value'),
        ('--colour', 'unrecognized arguments: --colour'),
        ('--amp fp16', '--amp fp16 needs a GPU'),
        pytest.param('--device cuda', '--device cuda', marks=NO_GPU),
        ('--evaluate', '--evaluate needs --resume'),
        ('--resume no/x', 'no checkpoint at no/x'),
        ('-b 9', '--batch-size 9 cannot be cut into 2 equal micro-batches'),
        ('-b 40', '36 training samples are fewer than one batch'),
        ('-b 2 -a dla60x', 'dla60x cannot train on single images of 32 pixels: give a larger --image-size or --batch-'),
    ],
)
def test_wrong_arguments(classify, capsys, arguments, told):
    assert told in classify.error(capsys, *arguments.split())


@pytest.mark.parametrize(
    'spoil, workers, told',
    [
        (lambda f: (f / 'train').rename(f / 'x'), 0, 'pictures/train'),
        (lambda f: [path.unlink() for path in (f / 'val' / 'bee').iterdir()], 0, 'bee'),
        (lambda f: (f / 'val' / 'bee').rename(f / 'val' / 'wasp'), 0, 'the same classes; only one has bee, wasp'),
        (lambda f: os.truncate(f / 'train/cat/2.png', 999), 0, 'cannot read image {}/train/cat/2.png'),
        (lambda f: (f / 'val/cat/2.png').write_text('no picture'), 2, 'cannot read image {}/val/cat/2.png'),
    ],
)
def test_spoiled_set(classify, folder, tmp_path, capsys, spoil, workers, told):
    spoil(folder)
    assert told.format(folder) in classify.error(capsys, '--output', tmp_path, '-j', workers)
    assert not (tmp_path / LAST).exists()


@pytest.mark.parametrize(
    'arguments, told',
    [
        ('-a dla60x --evaluate --resume {0}', 'error: {0}: a checkpoint of tiny, not of --arch dla60x'),
        ('--output {1}', 'error: {0} is of another run: '),
        ('--output {1} --auto-resume --seed 2', 'error: {0} was trained with --seed 0, not 2'),
    ],
)
def test_checkpoint_of_another_net_run_or_seed_stays_as_it_is(undisturbed, classify, capsys, arguments, told):
    folder = undisturbed('classify').folder
    before = (folder / LAST).read_bytes()
    error = classify.error(capsys, *arguments.format(folder / LAST, folder).split())
    assert error.startswith(told.format(folder / LAST))
    assert (folder / LAST).read_bytes() == before


def test_loss_that_is_not_finite(undisturbed, classify, tmp_path, capsys):
    folder = shutil.copytree(undisturbed('classify').folder, tmp_path / 'copied')
    before = (folder / LAST).read_bytes()
    error = classify.error(capsys, '--output', folder, '--auto-resume', '--epochs', 3, '--lr', 1e30, '-p', 100)
    assert re.search(rf'not finite at epoch 2, step [2-4]; last checkpoint: {folder / LAST}', error)
    assert (folder / LAST).read_bytes() == before


def test_weights_that_are_not_finite_are_not_saved(classify, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Run, 'check_finite', lambda run: None)
    assert 'is not finite: not saved' in classify.error(capsys, '--output', tmp_path, '--lr', 1e30)
    assert not (tmp_path / LAST).exists()


def test_output_in_use_by_a_process_until_it_is_killed(classify, tmp_path, capsys):
    context = multiprocessing.get_context('fork')
    taken = context.Event()

    def hold_lock():
        held = output.lock(tmp_path)
        taken.set()
        time.sleep(60)
        held.close()

    other = context.Process(target=hold_lock)
    other.start()
    assert taken.wait(60)
    assert f'{tmp_path} is in use by another run' in classify.error(capsys, '--output', tmp_path)
    other.kill()
    other.join()
    output.lock(tmp_path).close()
