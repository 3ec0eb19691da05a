"""Jobs of gloo processes that are stopped, hung, refused or wrong: they go on later, or all end with one line."""

import re
import shutil
import signal
import socket
from datetime import timedelta
from itertools import takewhile
from unittest.mock import Mock

import pytest

from tests.launch import HOST, ROOT, SMALL, Job, launch, run, start
from tests.runs import LAST, MEASURED, PAIR, assert_same, content
from utils import checkpoint, distributed


def test_launcher_starts_a_killed_job_anew_and_stops_all_at_one_step(folder, tmp_path):
    """After a kill, a SIGTERM to the launcher and another start the weights are those of a job left alone."""
    launcher = '-m torch.distributed.run --standalone --nproc_per_node=2 --max-restarts=1 --monitor-interval=0.2'
    arguments = ['classify', folder, *SMALL, '--save-steps', 1, '--auto-resume']
    job = ROOT / 'tests' / 'job.py', *arguments, '--epochs', 1000, '--output', tmp_path / 'job'
    with start(*launcher.split(), *job, KILL='1:2') as process:
        before = ''.join(takewhile(lambda line: not line.startswith('Epoch: [0][2'), process.stdout))
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=200)
    assert process.returncode != 0
    assert '\n=> resumed' in before, errors
    assert out.count('=> SIGTERM: saved at epoch') == 1
    saved = checkpoint.read(tmp_path / 'job' / LAST)
    arguments += ['--epochs', saved.epoch + 1, '--output']
    out = run(2, *arguments, tmp_path / 'job')
    assert f'=> resumed {tmp_path}/job/{LAST}: {saved.epoch} epochs and' in out
    run(2, *arguments, tmp_path / 'whole')
    assert_same(content(tmp_path / 'job'), content(tmp_path / 'whole'))


def test_flags_of_apex_start_a_job_all_of_which_stops_if_one_process_is_told_to(folder, tmp_path):
    with socket.create_server((HOST, 0)) as free:
        flags = '--world-size', 2, '--dist-url', f'tcp://{HOST}:{free.getsockname()[1]}', '--rank'
    arguments = 'docker_classify', folder, *SMALL, '-b', 6, '--output', tmp_path, '--epochs', 1000, *flags
    with Job(*[((*arguments, number), {}) for number in range(2)]) as job:
        job.send(1, signal.SIGTERM, after='Epoch: [1]')
        assert job.end() == ([143, 143], ['', ''])
        assert job.out(1) == ''
        lines = job.out(0).splitlines()
    assert re.fullmatch(rf'Epoch: \[0\]\[0/3\]\tTime {PAIR}\tSpeed {PAIR}\tData {PAIR}\t{MEASURED}', lines[1])
    assert lines[-1].startswith('=> SIGTERM: saved at epoch')


def test_flags_of_apex_have_the_address_of_apex(classify, monkeypatch):
    meet = Mock(side_effect=KeyError)
    monkeypatch.setattr(distributed, 'rendezvous', meet)
    with pytest.raises(KeyError):
        classify('--world-size', 3, '--rank', 1)
    assert meet.call_args.args == ('tcp://127.0.0.1:23456', 1, 3)


def test_a_process_that_is_stuck_itself_ends_when_another_hangs():
    with launch(2, 'stuck', '', '--dist-timeout', 4) as job:
        job.send(1, signal.SIGSTOP, after='Stuck')
        ended = job.end(1)
    told = 'process 0 of 2 (env://) cannot go on without the others; process 1 was silent for half of --dist-timeout'
    assert ended == ([1], [f'error: {told}\n'])


def refused(job):
    """What the processes of a job that ends with an error say of it."""
    with job:
        codes, errors = job.end()
    assert set(codes) == {1}
    return ''.join(errors)


def test_errors_are_told_once(folder, tmp_path, classify, segment, capsys):
    assert '--sync-bn needs GPUs' in classify.error(capsys, '--sync-bn')
    assert '--world-size 2 needs a --rank from 0 to 1' in classify.error(capsys, '--world-size', 2)
    cat, arguments = folder / 'train' / 'cat', ['classify', folder, *SMALL, '--output', tmp_path / 'run']
    (cat / '0.png').write_bytes(b'')  # which one process meets
    errors = refused(launch(2, *arguments))
    assert errors.count(f'error: cannot read image {cat}/0.png') == 1
    assert not re.search(r'Traceback.*/utils/', errors, re.S)
    shutil.rmtree(cat)  # which both do
    told = f'error: {folder}: train and val must have the same classes.*\n'
    assert re.fullmatch(told, refused(launch(2, *arguments)))
    told = 'error: --batch-size 2: tiny trains on 2 images per device, or with --freeze-bn\n'
    assert refused(launch(2, 'segment', *segment.shared, '--train', '--batch-size', 2)) == told  # of which each has one


@pytest.mark.parametrize(
    'flags, told',
    [
        ('--dist-url foo', '--dist-url foo: No rendezvous handler for ://; processes meet at tcp://HOST:PORT'),
        ('--dist-url tcp://127.0.0.1', '--dist-url tcp://127.0.0.1: .* port number missing; .*'),
        ('--dist-url file:///no/where', '--dist-url file:///no/where: no such folder'),
        ('--dist-backend nccl', '--dist-backend nccl needs GPUs, .*'),
        ('--dist-timeout 2', r'process 0 of 2 \(file://.*/meet\) cannot go on without the others; .*'),
    ],
)
def test_where_and_through_what_a_process_cannot_meet_another_is_told(folder, tmp_path, flags, told):
    meeting = ['--world-size', 2, '--rank', 0, '--dist-url', f'file://{tmp_path}/meet', *flags.split()]
    job = Job((['docker_classify', folder, *SMALL, '--output', tmp_path, *meeting], {}))
    assert re.fullmatch(f'error: {told}\n', refused(job))


def test_a_store_in_a_file_is_told_how_long_to_wait(tmp_path):
    store = distributed._rendezvous(f'file://{tmp_path}/meeting', 0, 2, timedelta(seconds=7))
    assert store.timeout == timedelta(seconds=7)
