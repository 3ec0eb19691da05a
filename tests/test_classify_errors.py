"""classify.py's errors of a user: one line each, a status that is not 0, and checkpoints left as they were."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import classify as script
from tests.conftest import Script, stop_at
from tests.runs import LAST
from utils import output
from utils.interrupt import Stopped
from utils.run import Run

ROOT = Path(__file__).parent.parent


def test_missing_folder(classify, tmp_path, capsys):
    assert str(tmp_path / 'no' / 'train') in Script(script, tmp_path / 'no', '-a tiny').error(capsys)


def test_class_without_an_image(classify, folder, capsys):
    (folder / 'val' / 'bee').rename(folder / 'bee')
    (folder / 'val' / 'bee').mkdir()
    assert 'bee' in classify.error(capsys)


def test_class_in_one_part_only(classify, folder, capsys):
    (folder / 'val' / 'bee').rename(folder / 'val' / 'wasp')
    assert 'train and val must have the same classes; only one has bee, wasp' in classify.error(capsys)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('damage', ['cut', 'text', 'empty'])
def test_unreadable_image_is_named(classify, folder, tmp_path, capsys, workers, damage):
    picture = folder / 'train' / 'cat' / '2.png'
    whole = picture.read_bytes()
    picture.write_bytes({'cut': whole[: len(whole) // 2], 'text': b'not a picture', 'empty': b''}[damage])
    assert f'cannot read image {picture}' in classify.error(capsys, '--output', tmp_path, '-j', workers)
    assert not (tmp_path / LAST).exists()


def test_checkpoint_of_another_architecture(classify, tmp_path, capsys):
    classify('--output', tmp_path)
    error = classify.error(capsys, '-a', 'dla60x', '--evaluate', '--resume', tmp_path / LAST)
    assert error == f'error: {tmp_path / LAST}: a checkpoint of tiny, not of --arch dla60x'


def test_evaluating_another_head(classify, folder, tmp_path, capsys):
    classify('--output', tmp_path)
    (folder / 'val' / 'ant').rename(folder / 'val' / 'ape')
    error = classify.error(capsys, '--evaluate', '--resume', tmp_path / LAST)
    assert 'cannot be evaluated here: its classes differ: ant where the data has ape' in error


def test_evaluating_without_a_checkpoint(classify, capsys):
    assert '--evaluate needs --resume' in classify.error(capsys, '--evaluate')


def test_checkpoint_that_is_not_there(classify, tmp_path, capsys):
    assert f'no checkpoint at {tmp_path / "x"}' in classify.error(capsys, '--resume', tmp_path / 'x')


def test_refused_pickle(classify, tmp_path, capsys):
    torch.save({'state_dict': {}, 'path': ROOT}, tmp_path / 'x')
    assert 'refused, its pickle names pathlib' in classify.error(capsys, '--resume', tmp_path / 'x')


def test_fp16_on_cpu(classify, capsys):
    assert '--amp fp16 needs a GPU' in classify.error(capsys, '--amp', 'fp16')


@pytest.mark.skipif(torch.cuda.is_available(), reason='here is a GPU')
def test_device_that_is_not_here(classify, capsys):
    assert '--device cuda' in classify.error(capsys, '--device', 'cuda')


def test_loss_that_is_not_finite(classify, tmp_path, capsys):
    classify('--output', tmp_path, '--epochs', 1)
    before = (tmp_path / LAST).read_bytes()
    error = classify.error(capsys, '--output', tmp_path, '--auto-resume', '--lr', 1e30, '-p', 100)
    assert re.search(rf'not finite at epoch 1, step [2-4]; last checkpoint: {tmp_path / LAST}', error)
    assert (tmp_path / LAST).read_bytes() == before


def test_weights_that_are_not_finite_are_not_saved(classify, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Run, 'check_finite', lambda run: None)
    assert 'is not finite: not saved' in classify.error(capsys, '--output', tmp_path, '--lr', 1e30)
    assert not (tmp_path / LAST).exists()


def test_full_disk(classify, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    error = classify.error(capsys, '--output', tmp_path)
    assert f'cannot write {tmp_path / "model_best.pth.tar"}' in error
    assert 'No space left on device' in error
    assert not list(tmp_path.glob('*.tar*'))


def test_batches_that_cannot_be_cut(classify, capsys):
    assert '--batch-size 9 cannot be cut into 2 equal micro-batches' in classify.error(capsys, '-b', 9)


def test_disk_that_is_full_when_the_curves_are_drawn(classify, tmp_path, capsys, monkeypatch):
    classify('--output', tmp_path, '--epochs', 1)
    before, files = (tmp_path / 'curves.png').read_bytes(), sorted(tmp_path.iterdir())
    monkeypatch.setattr(Path, 'write_bytes', cut_off)
    error = classify.error(capsys, '--output', tmp_path, '--auto-resume')
    assert error == f'error: cannot write {tmp_path}/curves.png: No space left on device'
    assert sorted(tmp_path.iterdir()) == files
    assert (tmp_path / 'curves.png').read_bytes() == before


def cut_off(path, content):
    with open(path, 'wb') as file:
        file.write(content[: len(content) // 2])
    raise OSError(28, 'No space left on device')


def test_single_images_that_leave_nothing_to_normalise(classify, capsys):
    told = 'dla60x cannot train on single images of 32 pixels: give a larger --image-size or --batch-size, or a smaller'
    assert told in classify.error(capsys, '-b', 2, '-a', 'dla60x')


def test_fewer_samples_than_a_batch(classify, capsys):
    assert '36 training samples are fewer than one batch' in classify.error(capsys, '-b', 40)


def test_output_in_use(classify, tmp_path, capsys):
    lock = """
import sys; from pathlib import Path; from utils import output
lock = output.lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, '-c', lock, tmp_path], cwd=ROOT, stdin=-1, stdout=-1, text=True)
    with other:
        assert other.stdout.readline() == 'locked\n'
        assert f'{tmp_path} is in use by another run' in classify.error(capsys, '--output', tmp_path)
        other.kill()
    output.lock(tmp_path).close()


def test_checkpoint_of_another_run_is_not_overwritten(classify, tmp_path, capsys):
    classify('--output', tmp_path)
    before = (tmp_path / LAST).read_bytes()
    assert f'{tmp_path / LAST} is of another run' in classify.error(capsys, '--output', tmp_path)
    assert (tmp_path / LAST).read_bytes() == before


def test_another_seed_on_resume(classify, tmp_path, capsys):
    classify('--output', tmp_path, '--seed', 1, '--epochs', 1)
    error = classify.error(capsys, '--output', tmp_path, '--auto-resume', '--seed', 2)
    assert 'was trained with --seed 1, not 2' in error


def test_other_batches_inside_an_epoch(classify, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 10)
        classify('--output', tmp_path)
    error = classify.error(capsys, '--output', tmp_path, '--auto-resume', '-b', 4)
    assert 'was saved inside an epoch of samples 36, micro-batch 4, accumulate 2' in error


@pytest.mark.parametrize(
    'arguments, told',
    [
        (['-a', 'resnet'], 'invalid choice'),
        (['-b', '0'], 'invalid positive value'),
        (['--image-size', '31'], 'invalid at_least_32 value'),
        (['--lr', 'nan'], 'invalid nonnegative value'),
        (['--amp', 'fp8'], 'invalid choice'),
        (['--colour'], 'unrecognized arguments: --colour'),
    ],
)
def test_wrong_arguments(classify, capsys, arguments, told):
    assert told in classify.error(capsys, *arguments)
