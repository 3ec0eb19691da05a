"""Real jobs of gloo processes that are killed, stopped, hung or wrong: they go on, or all end with one line."""

import re
import shutil
import signal
import sys
import time
from datetime import timedelta

import pytest
import torch

from tests.runs import LAST, MEASURED, PAIR, assert_same, content, epochs
from tests.test_distributed import RUN, SMALL, WORKER, start, torchrun
from utils import checkpoint
from utils.distributed import _rendezvous


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


@pytest.mark.parametrize(
    'flags, told',
    [
        (['--dist-url', 'foo'], 'error: --dist-url foo: No rendezvous handler for ://; processes meet at tcp://HOST:PORT'),
        (['--dist-url', 'tcp://127.0.0.1'], 'error: --dist-url tcp://127.0.0.1: .* port number missing; .*'),
        (['--dist-url', 'file:///no/where'], 'error: --dist-url file:///no/where: no such folder'),
        (['--dist-backend', 'nccl'], 'error: --dist-backend nccl needs GPUs, .*'),
    ],
)
def test_where_and_through_what_processes_cannot_meet_is_told(folder, tmp_path, flags, told):
    command = [sys.executable, WORKER, 'docker_classify', folder, *SMALL, '--output', tmp_path / 'run', *flags]
    with start([*command, '--world-size', 2, '--rank', 0]) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert re.fullmatch(f'{told}\n', errors)


def test_file_in_which_processes_meet_has_their_timeout(tmp_path):
    store, *numbers = _rendezvous(f'file://{tmp_path}/meet', 0, 2, timedelta(seconds=7))
    assert (store.timeout, numbers) == (timedelta(seconds=7), [0, 2])


def test_process_that_waits_in_vain_at_a_file_ends_with_one_line(folder, tmp_path):
    flags = '--world-size', 2, '--rank', 0, '--dist-url', f'file://{tmp_path}/meet', '--dist-timeout', 2
    with start([sys.executable, WORKER, 'docker_classify', folder, *SMALL, '--output', tmp_path, *flags]) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith(f'error: process 0 of 2 (file://{tmp_path}/meet) cannot go on without the others; ')


def test_a_process_with_too_few_images_is_refused(devkit, tmp_path):
    common = f'segment --train --exp x --data {devkit} -a tiny --crop-size 33 --workers 0 --device cpu'.split()
    command = [*RUN, '--nproc_per_node=2', WORKER, *common, '--batch-size', 2, '--output', tmp_path]
    with start(command) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors.count('error: --batch-size 2: tiny trains on 2 images per device') == 1
