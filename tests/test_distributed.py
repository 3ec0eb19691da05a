"""Real jobs of gloo processes: what they train, measure and say is what one process does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import job
from tests.runs import LAST, MEASURED, PAIR, assert_same, epochs
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


@pytest.mark.parametrize('average', [[], ['--average-bn']])
def test_coco_as_a_job(coco, tmp_path, average):
    arguments = ['multilabel_classify', coco, *SMALL, '-b', 8, '--output', tmp_path, *average]
    assert torchrun(2, *arguments).count('   mAP ') == 2
    last = tmp_path / 'coco_tiny_checkpoint.pth.tar'
    evaluated = torchrun(2, *arguments, '--evaluate', '--resume', last)
    alone = torchrun(1, *arguments, '--evaluate', '--resume', last)
    assert evaluated.splitlines()[-2:] == alone.splitlines()[-2:]


def test_voc_as_a_job(devkit, tmp_path):
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
