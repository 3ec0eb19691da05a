"""Jobs of gloo processes: they do what one process does, killed and begun anew or not; or all end with one line."""

import json
import queue
import re
import shutil
import signal
import socket
import threading
from datetime import timedelta
from itertools import takewhile
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import classify as script
from tests import job
from tests.conftest import Script, write_folder
from tests.launch import HOST, ROOT, SMALL, Job, launch, run, start
from tests.runs import LAST, LAST_OF_COCO, LAST_OF_VOC, MEASURED, PAIR, assert_same, content, epochs
from utils import checkpoint, distributed


@pytest.mark.parametrize('world', [2, 3])
def test_shared_evaluation_and_averages_are_those_of_one_process(world, tmp_path):
    """Running statistics are sent to nobody."""
    run(world, 'checks', tmp_path)
    found = [torch.load(tmp_path / f'{number}.pt') for number in range(world)]
    assert [process['averages'] for process in found] == [[(world - 1) / 2, number, True] for number in range(world)]
    assert all(torch.equal(process['means'], job.normalized(number)) for number, process in enumerate(found))
    for key, expected in job.measures(share=False).items():
        loss = pytest.approx(expected.pop('loss'), rel=1e-6)
        expected = json.loads(json.dumps(expected), parse_float=lambda number: pytest.approx(float(number), rel=1e-12))
        assert [process['measures'][key] for process in found] == [expected | {'loss': loss}] * world


@pytest.fixture(scope='module', params=[2, pytest.param(3, marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """A job of classify.py that is left alone: its size, arguments and folder."""
    world, place = request.param, tmp_path_factory.mktemp('job')
    arguments = [write_folder(place / 'pictures'), *SMALL, '-b', 6 * world, '-g', 2 * world]
    run(world, 'classify', *arguments, '--output', place / 'run')
    return SimpleNamespace(world=world, arguments=arguments, run=place / 'run')


def test_training_equals_one_process_with_as_many_micro_batches(trained, tiny, tmp_path):
    """Each process normalizes what a micro-batch of the single process holds, so weights agree; statistics do not."""
    Script(script, trained.arguments[0])(*trained.arguments[1:], '--output', tmp_path)
    job, one = content(trained.run), content(tmp_path)
    statistics = [process['statistics'] for process in checkpoint.read(trained.run / LAST).processes]
    assert_same(statistics[0], {name: job.pop(name) for name in statistics[0]})
    torch.testing.assert_close(job, {name: one[name] for name in job}, rtol=1e-5, atol=1e-6)
    means = torch.stack([values['bn3.running_mean'] for values in statistics])
    assert len(means.unique(dim=0)) == trained.world


def test_processes_that_find_different_files_neither_train_nor_test(trained, tmp_path):
    """As on machines without a disk in common."""
    outputs = [shutil.copytree(trained.run, tmp_path / 'there'), *[tmp_path / 'nowhere'] * (trained.world - 1)]
    arguments = *trained.arguments, '--epochs', 3, '--auto-resume', '--output'
    with launch(trained.world, 'classify', *arguments, own=outputs) as job:
        codes, errors = job.end()
    assert codes == [1] * trained.world
    told = f'error: processes begin at different places: all must see the same --output {outputs[0]}\n'
    assert ''.join(errors) == told
    if trained.world == 2:
        saved = torch.load(trained.run / LAST, weights_only=True)
        saved['state_dict']['module.conv1.weight'] += 1
        torch.save(saved, tmp_path / 'other')
        nets = f'--resume={trained.run / LAST}', f'--resume={tmp_path / "other"}'
        with launch(2, 'classify', *trained.arguments, '--evaluate', own=nets) as job:
            codes, errors = job.end()
        assert ''.join(errors) == 'error: processes test different nets: all must see the same --resume\n'


SLOW = [pytest.param(*kill, marks=pytest.mark.slow) for kill in [(2, '0:2'), (2, '0:5'), (2, '1:6'), (3, '2:2')]]


@pytest.mark.parametrize('trained, kill', [(2, '1:3'), *SLOW], indirect=['trained'])
def test_job_goes_on_after_a_process_is_killed_at_any_step(trained, kill, tmp_path):
    arguments = ['classify', *trained.arguments, '--output', tmp_path, '--save-steps', 1, '--auto-resume']
    number, update = map(int, kill.split(':'))
    with launch(trained.world, *arguments, KILL=kill) as job:
        codes, errors = job.end()
        assert codes.pop(number) == -signal.SIGKILL
        assert codes == [1] * len(codes)
        assert all(len(lines.splitlines()) == 1 for place, lines in enumerate(errors) if place != number)
        assert '=> resumed' in run(trained.world, *arguments, store=job.store, restart=1)
    records, steps = epochs(tmp_path), 12 // trained.world
    assert [record['from_step'] for record in records if 'args' in record] == [0, 2 * (update - 1) % steps]
    killed, whole = content(tmp_path), content(trained.run)
    if trained.world == 2:
        assert_same(killed, whole)
        assert records[-1] == epochs(trained.run)[-1]
    torch.testing.assert_close(killed, whole, rtol=1e-6, atol=1e-6)


def test_averaged_statistics_are_saved_and_shared_evaluation_reports_them(classify, tmp_path):
    run(2, 'classify', *classify.shared, '--average-bn', '--output', tmp_path)
    first, second = (process['statistics'] for process in checkpoint.read(tmp_path / LAST).processes)
    assert_same(first, second)
    alone, reported = classify('--evaluate', '--resume', tmp_path / LAST), epochs(tmp_path)[-1]['val']
    assert (alone['err1'], alone['err5']) == (reported['err1'], reported['err5'])


def test_coco_as_a_job(multilabel, tmp_path, capsys):
    assert run(2, 'multilabel_classify', *multilabel.shared, '--output', tmp_path).count('   mAP ') == 2
    evaluation = '--evaluate', '--resume', tmp_path / LAST_OF_COCO
    multilabel(*evaluation)
    alone = capsys.readouterr().out.splitlines()
    assert run(2, 'multilabel_classify', *multilabel.shared, *evaluation).splitlines()[-2:] == alone[-2:]


def test_voc_as_a_job(segment, tmp_path, capsys):
    """Of the 13 images three are left for an epoch's second batch, of which one process gets two."""
    two, one, training = tmp_path / '2', tmp_path / '1', ('--train', '--batch-size', 10, '--freeze-bn', '-p', 1)
    lines = run(2, 'segment', *segment.shared, *training, '--output', two)
    segment(*training, '--output', one)
    torch.testing.assert_close(content(two, LAST_OF_VOC), content(one, LAST_OF_VOC), rtol=1e-5, atol=1e-6)
    printed = [re.findall(r'loss: (\S+) \((\S+)\)', text) for text in (lines, capsys.readouterr().out)]
    np.testing.assert_allclose(*(np.array(numbers, float).reshape(4, 2) for numbers in printed), rtol=0, atol=2e-4)
    with launch(2, 'segment', *segment.shared, *training, '--output', tmp_path, '--save-steps', 1, KILL='0:2') as job:
        job.end()
    segment(*training, '--output', tmp_path, '--auto-resume')  # alone, within the first epoch
    logged = [[record['train']['loss'] for record in epochs(place)[-2:]] for place in (one, two, tmp_path)]
    np.testing.assert_allclose(logged[1:], logged[:1] * 2, rtol=1e-5)
    smooth = [checkpoint.read(place / LAST_OF_VOC).smooth_loss for place in (one, two, tmp_path)]
    assert smooth[1:] == pytest.approx(smooth[:1] * 2, rel=1e-5)
    out = run(2, 'segment', *segment.shared, '--resume', two / LAST_OF_VOC, '--output', two)
    segment('--resume', two / LAST_OF_VOC, '--output', one)
    assert out.splitlines()[-23:] == capsys.readouterr().out.splitlines()[-23:]
    pictures = [{path.name: path.read_bytes() for path in (place / 'val').iterdir()} for place in (two, one)]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 3


def test_docker_classifys_lines_are_averages_over_the_processes(classify, tmp_path):
    """As in the log, which was counted over all of them; every process measures other batches."""
    lines = run(2, 'docker_classify', *classify.shared, '-b', 6, '-p', 1, '--output', tmp_path).splitlines()
    for part, begin in ('train', 'Epoch: '), ('val', 'Test: '):
        found = [re.findall(r'(?:Loss|Err@1|Err@5) (\S+) \((\S+)\)', line) for line in lines if line.startswith(begin)]
        last, average = np.moveaxis(np.array(found, float).reshape(2, -1, 3, 2), 3, 0)  # of epoch, line and quantity
        logged = [[record[part][name] for name in ('loss', 'err1', 'err5')] for record in epochs(tmp_path)[1:]]
        np.testing.assert_allclose(average[:, -1], logged, rtol=0, atol=2e-3)
        if part == 'train':  # all batches are of one size
            np.testing.assert_allclose(last.mean(1), logged, rtol=0, atol=2e-3)


# Stopped, hung, refused or wrong


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


HERE = {'MASTER_ADDR': HOST, 'MASTER_PORT': '1'}


@pytest.mark.parametrize(
    'flags, environment, met',
    [
        ('--world-size 3 --rank 1', {}, ('tcp://127.0.0.1:23456', 1, 3)),  # apex's address
        ('', HERE | {'RANK': '1', 'WORLD_SIZE': '2'}, ('env://', 1, 2)),  # all that torch needs
        ('--dist-url tcp://x:1', {'RANK': '1', 'WORLD_SIZE': '2'}, ('tcp://x:1', 1, 2)),
    ],
)
def test_what_makes_a_job_and_where_it_meets(classify, tmp_path, monkeypatch, flags, environment, met):
    meet = Mock(side_effect=KeyError)
    monkeypatch.setattr(distributed, 'rendezvous', meet)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KeyError):
        classify('--output', tmp_path, *flags.split())
    assert meet.call_args.args == met


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


def test_processes_that_are_called_otherwise_or_see_other_pictures_do_not_train(folder, tmp_path):
    arguments, fewer = ['classify', *SMALL, '--output', tmp_path / 'run'], shutil.copytree(folder, tmp_path / 'fewer')
    told = 'error: processes 0 and 1 differ in --lr: 0.05 and 0.1\n'
    assert refused(launch(2, *arguments, folder, own=['--lr=0.05', '--lr=0.1'])) == told
    (fewer / 'train' / 'cat' / '0.png').unlink()
    told = 'error: process 0 has 36 training samples, and another one has others: all must see the same pictures\n'
    assert refused(launch(2, *arguments, own=[folder, fewer])) == told


@pytest.fixture
def left(monkeypatch):
    """The errors with which this process would have ended at once."""
    errors = queue.SimpleQueue()
    monkeypatch.setattr(distributed, '_leave', errors.put)
    return errors


def test_a_store_that_does_not_answer_is_missed_as_well(left):
    """As where the machine that keeps it is gone."""
    store = Mock(add=lambda *_: threading.Event().wait())
    store.clone = lambda: store
    watchdog = distributed.Watchdog(store, 1, 2, 0.2, 'process 1 of 2 cannot go on')
    assert 'process 1 of 2 cannot go on; process 0, 1 was silent for half of' in str(left.get(timeout=60))
    watchdog.stop()


def test_processes_that_do_not_meet_in_time_end(left):
    with distributed._limited(-5, 'process 1 of 2 cannot go on'):
        assert 'cannot go on; they did not meet within --dist-timeout' in str(left.get(timeout=60))


def test_a_store_in_a_file_is_told_how_long_to_wait(tmp_path):
    store = distributed._rendezvous(f'file://{tmp_path}/meeting', 0, 2, timedelta(seconds=7))
    assert store.timeout == timedelta(seconds=7)
