"""classify.py end to end on a small folder: printed lines, files, exact resume."""

import re
import shutil
import signal

import pytest
import torch
from PIL import Image

import classify as script
import docker_classify
from tests.conftest import Script, stop_at, write_folder
from tests.runs import LAST, MEASURED, PAIR, assert_same, content, epochs
from utils import checkpoint, task
from utils.errors import UserError
from utils.interrupt import Stopped
from utils.run import Run


def test_printed_lines_have_the_form_of_the_reference(classify, tmp_path, capsys):
    classify('--output', tmp_path / 'run')
    lines = capsys.readouterr().out.splitlines()
    train = [re.fullmatch(rf'Epoch: \[(\d)\]\[(\d+)/(\d+)\]\tTime {PAIR}\tData {PAIR}\t{MEASURED}', x) for x in lines]
    assert [m.groups() for m in train if m] == [(e, i, '9') for e in '01' for i in '036']
    test = [re.fullmatch(rf'Test: \[(\d+)/(\d+)\]\tTime {PAIR}\t{MEASURED}', line) for line in lines]
    assert [m.groups() for m in test if m] == 2 * [('0', '5'), ('3', '5')]
    ends = [line for line in lines if re.fullmatch(r' \* Err@1 \d+\.\d{3} Err@5 \d+\.\d{3}', line)]
    assert len(ends) == 2
    assert len(lines) == 1 + 6 + 4 + 2


def test_evaluation_prints_what_training_printed(classify, tmp_path, capsys):
    classify('--output', tmp_path)
    trained = capsys.readouterr().out.splitlines()[-1]
    classify('--evaluate', '--resume', tmp_path / LAST, '-b', 18)
    assert capsys.readouterr().out.splitlines()[-1] == trained


def test_evaluation_needs_val_only_and_writes_nothing(classify, folder, tmp_path, monkeypatch):
    classify('--output', tmp_path / 'run')
    (folder / 'train').rename(folder / 'hidden')
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    classify('--evaluate', '--resume', tmp_path / 'run' / LAST)
    assert not list((tmp_path / 'elsewhere').iterdir())


def test_checkpoint_has_the_keys_of_the_reference_and_ours(classify, tmp_path):
    classify('--output', tmp_path)
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert (saved['epoch'], saved['arch'], saved['task'], saved['seed']) == (2, 'tiny', 'imagenet', 0)
    assert saved['classes'] == ['ant', 'bee', 'cat', 'dog', 'eel', 'fox']
    assert all(name.startswith('module.') for name in saved['state_dict'])
    assert saved['best_err1'] == min(record['val']['err1'] for record in epochs(tmp_path)[1:])
    assert saved['position'] is None


def test_best_epoch_is_kept(classify, tmp_path):
    classify('--output', tmp_path, '--epochs', 4, '--lr', 0.5)
    errors = [record['val']['err1'] for record in epochs(tmp_path)[1:]]
    assert torch.load(tmp_path / 'model_best.pth.tar', weights_only=True)['epoch'] == errors.index(min(errors)) + 1


def test_log_has_arguments_first_then_a_line_per_epoch(classify, tmp_path):
    classify('--output', tmp_path)
    start, *rest = epochs(tmp_path)
    assert start['args']['lr'] == 0.05
    assert {'git', 'torch', 'device'} <= start.keys()
    assert [record['epoch'] for record in rest] == [0, 1]
    assert all(set(record[part]) == {'loss', 'err1', 'err5'} for record in rest for part in ('train', 'val'))
    with Image.open(tmp_path / 'curves.png') as picture:
        assert min(picture.size) > 100


def test_learning_rate_falls_as_asked(classify, tmp_path):
    classify('--output', tmp_path, '--epochs', 3, '--decay-epochs', 2)
    assert [record['lr'] for record in epochs(tmp_path)[1:]] == pytest.approx([0.05, 0.05, 0.005])


def test_few_classes_have_no_top_five_error(tmp_path, tiny, capsys):
    folder = write_folder(tmp_path / 'two', classes=('yes', 'no'), train=8)
    Script(script, folder, '-a tiny -b 8 -g 2 --epochs 1 --image-size 32 -j 0 --device cpu')('--output', tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].endswith('Err@5 0.000')


def test_docker_classify_keeps_the_batch_of_a_process_as_given(classify, folder, tmp_path, capsys):
    docker = Script(docker_classify, folder, ' '.join([*classify.shared[1:], '-b', '4']))
    docker('--output', tmp_path / 'docker')
    assert '2 x 4 per update' in capsys.readouterr().out
    assert epochs(tmp_path / 'docker')[0]['args']['batch_size'] == 4
    classify('--output', tmp_path / 'whole')
    assert_same(content(tmp_path / 'docker', 'checkpoint.pth.tar'), content(tmp_path / 'whole'))
    for scale in 0, -1, 'nan':
        assert 'invalid above_zero value' in docker.error(capsys, '--static-loss-scale', scale)
    assert 'fewer than one batch (--batch-size 20 on --num-gpus 2)' in docker.error(capsys, '-b', 20)
    assert 'samples per update of a process, one of --num-gpus' in docker_classify.make_parser().format_help()


def test_docker_classify_as_one_process_uses_one_gpu_and_classify_all(classify, monkeypatch):
    """With GPUs that are only counted: what they would be used for is seen before the net is placed."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    seen = []

    def look(_task, _args, compute, micro_batch, _batch_size):
        seen.append((compute.devices, str(compute.device), micro_batch))
        raise UserError('seen')

    monkeypatch.setattr(task, 'check_training', look)
    for chosen in script, docker_classify:
        with pytest.raises(UserError, match='seen'):
            Script(chosen, *classify.shared[:1], ' '.join(classify.shared[1:]))('-g', 4, '--device', 'auto')
    assert seen == [(4, 'cuda', 8), (1, 'cuda:0', 8)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on CPU')
def test_compiled_net_trains_to_the_same_weights(classify, tmp_path):
    classify('--output', tmp_path / 'eager', '--epochs', 1)
    classify('--output', tmp_path / 'compiled', '--epochs', 1, '--compile')
    eager, compiled = (content(tmp_path / name) for name in ('eager', 'compiled'))
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


# Stopping and resuming


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('call', [3, 17, 47, 60])  # in the first batches, inside, while validating, in epoch 1
def test_stopped_and_resumed_run_is_bit_identical(classify, tmp_path, monkeypatch, workers, call, capsys):
    classify('--output', tmp_path / 'whole', '-j', workers)
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        stop_at(patch, call if workers == 0 else max(1, call // 2))
        classify('--output', tmp_path / 'parts', '-j', workers)
    assert stopped.value.code == 143
    assert re.search(r'=> SIGTERM: saved at epoch \d, step \d', capsys.readouterr().out)
    classify('--output', tmp_path / 'parts', '-j', workers, '--auto-resume')
    assert_same(content(tmp_path / 'parts'), content(tmp_path / 'whole'))
    whole, parts = (epochs(tmp_path / name)[1:] for name in ('whole', 'parts'))
    assert [record for record in parts if 'epoch' in record] == whole


def test_ctrl_c_saves_and_exits_130(classify, tmp_path, monkeypatch):
    stop_at(monkeypatch, 10, signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        classify('--output', tmp_path)
    assert stopped.value.code == 130
    assert checkpoint.read(tmp_path / LAST).position['step'] % 2 == 0


def test_workers_change_nothing(classify, tmp_path):
    for workers in 0, 2:
        classify('--output', tmp_path / str(workers), '-j', workers)
    assert_same(content(tmp_path / '0'), content(tmp_path / '2'))


def test_save_steps_saves_inside_an_epoch_and_resumes_exactly(classify, tmp_path, monkeypatch):
    classify('--output', tmp_path / 'whole')
    saved, save = [], Run.save

    def recording(run, *names):
        saved.append((run.epoch, run.step))
        if run.step == 6:
            raise KeyboardInterrupt  # killed before it could save again
        save(run, *names)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, 'save', recording)
        classify('--output', tmp_path / 'parts', '--save-steps', 1)
    assert saved == [(0, 2), (0, 4), (0, 6)]
    classify('--resume', tmp_path / 'parts' / LAST, '--output', tmp_path / 'parts')
    assert_same(content(tmp_path / 'parts'), content(tmp_path / 'whole'))


def test_epochs_run_in_two_calls_equal_one_call(classify, tmp_path):
    classify('--output', tmp_path / 'whole')
    classify('--output', tmp_path / 'parts', '--epochs', 1)
    classify('--output', tmp_path / 'parts', '--resume', tmp_path / 'parts' / LAST)
    assert_same(content(tmp_path / 'parts'), content(tmp_path / 'whole'))


def test_seed_decides(classify, tmp_path):
    for name, seed in ('a', 3), ('b', 3), ('c', 4):
        classify('--output', tmp_path / name, '--seed', seed, '--epochs', 1)
    assert_same(content(tmp_path / 'a'), content(tmp_path / 'b'))
    with pytest.raises(AssertionError):
        assert_same(content(tmp_path / 'a'), content(tmp_path / 'c'))


def test_another_head_is_transferred_when_training(classify, tmp_path, tiny, capsys):
    classify('--output', tmp_path / 'six')
    folder = write_folder(tmp_path / 'three', classes=('gnu', 'hen', 'ibis'))
    other = Script(script, folder, '-a tiny -b 8 -g 2 --epochs 0 --image-size 32 -j 0 --device cpu')
    other('--output', tmp_path / 'new', '--resume', tmp_path / 'six' / LAST)
    assert 'left out, as initialised: fc\n' in capsys.readouterr().out


def test_nothing_is_left_to_do_after_the_last_epoch(classify, tmp_path):
    classify('--output', tmp_path)
    before = (tmp_path / LAST).read_bytes()
    classify('--output', tmp_path, '--auto-resume')
    assert (tmp_path / LAST).read_bytes() == before
