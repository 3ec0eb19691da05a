"""Real jobs of gloo processes: what they train, measure and say is what one process does; killed ones go on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import job
from tests.test_classify import LAST, MEASURED, PAIR, assert_same, content, epochs
from tests.test_multilabel_classify import coco  # noqa: F401 - a fixture
from tests.test_segment import devkit  # noqa: F401 - a fixture
from utils import checkpoint

ROOT = Path(__file__).parent.parent
SMALL = '-a tiny -b 12 -g 2 --epochs 2 --lr 0.05 --image-size 32 -j 0 -p 1 --device cpu'.split()  # noqa: SIM905
RUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
WORKER = str(ROOT / 'tests' / 'job.py')


def start(command, **environment):
    """A process whose output can be read, in a group of its own."""
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)} | environment
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
    )


def torchrun(world, *arguments, restarts=0, **environment):
    """What a job of so many processes printed, after it ended well."""
    options = [f'--nproc_per_node={world}', f'--max-restarts={restarts}', '--monitor-interval=0.2']
    with start([*RUN, *options, WORKER, *arguments], **environment) as process:
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


@pytest.fixture
def small_nets(monkeypatch):
    """The nets of job.py, here."""
    job.register()
    yield
    job.unregister()


@pytest.mark.parametrize('world', [2, 3])
def test_gradients_are_those_of_one_process_and_sent_once_per_update(world, tmp_path, small_nets):
    torchrun(world, 'gradients', tmp_path)
    found = [torch.load(tmp_path / f'{number}.pt') for number in range(world)]
    for name in job.NETS:
        expected = job.accumulated(name)
        for key, value in expected.items():
            ours = [process[name][key] for process in found]
            if key.startswith('1 '):
                for gradient in ours:
                    torch.testing.assert_close(gradient, value, rtol=1e-6, atol=1e-9)
            elif value.abs().max() > 1e-12:
                assert not torch.allclose(ours[0], ours[1])  # not summed yet
        assert all(process[name].keys() == expected.keys() for process in found)


@pytest.mark.parametrize('world', [2, 3])
def test_shared_evaluation_is_exact_for_any_number_of_images(world, tmp_path):
    torchrun(world, 'evaluations', tmp_path)
    whole = job.measures(share=False)
    for number in range(world):
        found = torch.load(tmp_path / f'{number}.pt')
        assert found.keys() == whole.keys()
        for (task, samples), expected in whole.items():
            result = found[task, samples]
            assert result.pop('loss') == pytest.approx(expected['loss'], rel=1e-6)
            rest = {name: value for name, value in expected.items() if name != 'loss'}
            if task == 'coco':
                assert result.pop('classes') == [pytest.approx(row) for row in rest.pop('classes')]
                assert result == pytest.approx(rest)
            else:
                assert result == rest, (task, samples)


def parameters(path):
    """The weights of a checkpoint, without running statistics."""
    state = checkpoint.read(path).state_dict
    return {name: value for name, value in state.items() if 'running' not in name and 'tracked' not in name}


@pytest.mark.parametrize('world', [2, 3])
def test_training_equals_one_process_with_as_many_micro_batches(world, folder, classify, tmp_path):
    """Each process normalises what a micro-batch of the single process holds, so weights agree; statistics do not."""
    arguments = [folder, *SMALL, '-b', 6 * world, '-g', world]
    out = torchrun(world, 'classify', *arguments, '--output', tmp_path / 'job')
    classify(*arguments[1:], '--output', tmp_path / 'one')
    one, ours = parameters(tmp_path / 'one' / LAST), parameters(tmp_path / 'job' / LAST)
    for name, value in one.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
    saved = checkpoint.read(tmp_path / 'job' / LAST)
    statistics = [process['statistics'] for process in saved.processes]
    assert len(statistics) == world
    assert not torch.equal(statistics[0]['bn3.running_mean'], statistics[1]['bn3.running_mean'])
    assert torch.equal(statistics[0]['bn3.running_mean'], saved.state_dict['bn3.running_mean'])
    said_once(out, tmp_path / 'job', 36 // (6 * world))
    reported_is_the_mean_of_all(saved, classify, folder, tmp_path)


def said_once(out, run, steps):
    """Every line once, in the reference's form; the log whole."""
    lines = out.splitlines()
    train = [re.fullmatch(rf'Epoch: \[(\d)\]\[(\d+)/(\d+)\]\tTime {PAIR}\tData {PAIR}\t{MEASURED}', x) for x in lines]
    assert [m.groups() for m in train if m] == [(e, str(i), str(steps)) for e in '01' for i in range(steps)]
    assert len([line for line in lines if line.startswith(' * Err@1')]) == 2
    records = epochs(run)
    assert [record.get('epoch') for record in records] == [None, 0, 1]


def reported_is_the_mean_of_all(saved, classify, folder, tmp_path):
    """What the job reported is the mean of what each process's statistics give."""
    errors = []
    for process in saved.processes:
        torch.save({'state_dict': saved.state_dict | process['statistics']}, tmp_path / 'part.pth')
        classify('--evaluate', '--resume', tmp_path / 'part.pth', '--output', tmp_path / 'part')
        errors.append(TOLD.pop()['err1'])
    assert epochs(tmp_path / 'job')[-1]['val']['err1'] == pytest.approx(sum(errors) / len(errors))


TOLD = []


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """Results of evaluations in this process."""
    from utils import task

    real = task.evaluate
    monkeypatch.setattr(task, 'evaluate', lambda *arguments: TOLD.append(real(*arguments)) or TOLD[-1])
    yield
    TOLD.clear()


def test_averaged_statistics_are_saved_and_shared_evaluation_reports_them(folder, classify, tmp_path):
    torchrun(2, 'classify', folder, *SMALL, '--average-bn', '--output', tmp_path / 'job')
    saved = checkpoint.read(tmp_path / 'job' / LAST)
    first, second = (process['statistics'] for process in saved.processes)
    assert_same(first, second)
    classify('--evaluate', '--resume', tmp_path / 'job' / LAST)
    reported = epochs(tmp_path / 'job')[-1]['val']
    assert (TOLD[-1]['err1'], TOLD[-1]['err5']) == (reported['err1'], reported['err5'])


def killed_and_uninterrupted(world, kill, folder, tmp_path):
    """The checkpoints of a job one of whose processes is killed, and of one that is left alone."""
    arguments = ['docker_classify', folder, *SMALL, '-b', 4, '-g', world, '--save-steps', 1, '--auto-resume']
    torchrun(world, *arguments, '--output', tmp_path / 'whole')
    out = torchrun(world, *arguments, '--output', tmp_path / 'killed', restarts=1, KILL=kill)
    assert '=> resumed' in out
    return (content(tmp_path / name, 'checkpoint.pth.tar') for name in ('killed', 'whole'))


def test_job_goes_on_after_a_process_is_killed(folder, tmp_path):
    killed, whole = killed_and_uninterrupted(2, '1:4', folder, tmp_path)
    assert_same(killed, whole)
    records = [epochs(tmp_path / name) for name in ('killed', 'whole')]
    assert records[0][-1] == records[1][-1]
    assert [record['from_step'] for record in records[0] if 'args' in record] == [0, 3]


@pytest.mark.slow
@pytest.mark.parametrize('world, kill', [(2, '0:2'), (2, '0:5'), (2, '1:6'), (3, '2:2'), (3, '0:3')])
def test_job_goes_on_after_any_process_is_killed_at_any_step(world, kill, folder, tmp_path):
    killed, whole = killed_and_uninterrupted(world, kill, folder, tmp_path)
    if world == 2:
        assert_same(killed, whole)
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=1e-6, atol=1e-6)


def test_all_processes_stop_at_one_step_when_the_launcher_is_stopped(folder, tmp_path):
    arguments = ['classify', folder, *SMALL, '--output', tmp_path / 'job', '--auto-resume']
    with start([*RUN, '--nproc_per_node=2', WORKER, *arguments, '--epochs', 1000]) as process:
        for line in process.stdout:
            if line.startswith('Epoch: [1]'):
                process.send_signal(signal.SIGTERM)
                break
        out, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert '=> SIGTERM: saved at epoch' in out
    saved = checkpoint.read(tmp_path / 'job' / LAST)
    out = torchrun(2, *arguments, '--epochs', saved.epoch + 1)
    assert f'=> resumed {tmp_path}/job/{LAST}: {saved.epoch} epochs and' in out


def pair(folder, *arguments):
    """Two processes started as apex.parallel.multiproc does: without a launcher, without an address."""
    command = [sys.executable, WORKER, 'docker_classify', folder, *SMALL, '-b', 6, *arguments, '--world-size', 2]
    return [start([*command, '--rank', number]) for number in range(2)]


def test_flags_of_apex_start_a_job_and_a_second_one_on_its_folder_is_refused(folder, tmp_path):
    processes = pair(folder, '--output', tmp_path, '--epochs', 40)
    lines = []
    for line in processes[0].stdout:
        lines.append(line)
        if line.startswith('Epoch: [1]'):
            break
    speed = rf'Epoch: \[0\]\[0/3\]\tTime {PAIR}\tSpeed {PAIR}\tData {PAIR}\t{MEASURED}\n'
    assert re.fullmatch(speed, lines[1])
    with start([*RUN, '--nproc_per_node=2', WORKER, 'classify', folder, *SMALL, '--output', tmp_path]) as second:
        _, refused = second.communicate(timeout=100)
    assert second.returncode != 0
    assert refused.count(f'error: {tmp_path} is in use by another run') == 1
    processes[1].send_signal(signal.SIGTERM)
    ended = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    assert '=> SIGTERM: saved at epoch' in ended[0][0]
    assert [errors for _, errors in ended] == ['', '']


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_vanishes_or_hangs_ends_the_others_with_one_line(folder, tmp_path, number):
    processes = pair(folder, '--output', tmp_path, '--epochs', 1000, '--dist-timeout', 5)
    for line in processes[0].stdout:
        if line.startswith('Epoch: [1]'):
            processes[1].send_signal(number)
            break
    began = time.monotonic()
    _, errors = processes[0].communicate(timeout=100)
    assert time.monotonic() - began < 60
    processes[1].kill()
    processes[1].communicate()
    assert processes[0].returncode == 1
    assert len(errors.splitlines()) == 1
    assert 'error: process 0 of 2 (tcp://127.0.0.1:23456) cannot go on without the others' in errors


def test_errors_are_told_once(folder, tmp_path, classify, capsys):
    assert '--sync-bn needs GPUs' in classify.error(capsys, '--sync-bn')
    assert '--world-size 2 needs a --rank from 0 to 1' in classify.error(capsys, '--world-size', 2)
    command = [*RUN, '--nproc_per_node=2', WORKER, 'classify', folder, *SMALL, '--output', tmp_path / 'run']
    cat = folder / 'train' / 'cat'
    for spoil, told in (
        (lambda: (cat / '0.png').write_bytes(b''), f'error: cannot read image {cat}/0.png'),
        (lambda: shutil.rmtree(cat), f'error: {folder}: train and val must have the same classes'),
    ):
        spoil()
        with start(command) as process:
            _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert errors.count(told) == 1
        assert not re.search(r'Traceback.*/utils/', errors, re.S)


def test_a_process_with_too_few_images_is_refused(devkit, tmp_path):  # noqa: F811 - the fixture
    common = f'segment --train --exp x --data {devkit} -a tiny --crop-size 33 --workers 0 --device cpu'.split()
    command = [*RUN, '--nproc_per_node=2', WORKER, *common, '--batch-size', 2, '--output', tmp_path]
    with start(command) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors.count('error: --batch-size 2: tiny trains on 2 images per device') == 1


@pytest.mark.parametrize('average', [[], ['--average-bn']])
def test_coco_as_a_job(coco, tmp_path, average):  # noqa: F811 - the fixture
    arguments = ['multilabel_classify', coco, *SMALL, '-b', 8, '--output', tmp_path, *average]
    assert torchrun(2, *arguments).count('   mAP ') == 2
    last = tmp_path / 'coco_tiny_checkpoint.pth.tar'
    evaluated = torchrun(2, *arguments, '--evaluate', '--resume', last)
    alone = torchrun(1, *arguments, '--evaluate', '--resume', last)
    assert evaluated.splitlines()[-2:] == alone.splitlines()[-2:]


def test_voc_as_a_job(devkit, tmp_path):  # noqa: F811 - the fixture
    common = f'--exp x --data {devkit} -a tiny --crop-size 33 --epochs 2 --workers 0 --device cpu -p 1'.split()
    arguments = ['segment', *common, '--base-lr', 0.05, '--batch-size', 4, '--freeze-bn']
    outs = [torchrun(world, *arguments, '--train', '--output', tmp_path / str(world)) for world in (2, 1)]
    lines = [[line for line in out.splitlines() if line.startswith('epoch: ')] for out in outs]
    assert [len(part) for part in lines] == [6, 8]  # 13 images: the last one, alone, cannot be shared
    last = tmp_path / '2' / 'deeplab_tiny_pascal_v3_x_epoch2.pth'
    outs = [torchrun(world, *arguments, '--resume', last, '--output', tmp_path / f'val{world}') for world in (2, 1)]
    assert outs[0].splitlines()[-23:] == outs[1].splitlines()[-23:]
    pictures = [sorted((tmp_path / f'val{world}' / 'val').iterdir()) for world in (2, 1)]
    assert [path.read_bytes() for path in pictures[0]] == [path.read_bytes() for path in pictures[1]]
    assert len(pictures[0]) == 3
