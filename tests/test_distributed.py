"""Jobs of gloo processes: what they train, measure and say is what one process does, killed and begun anew or not."""

import re
import signal
from types import SimpleNamespace

import pytest
import torch

import classify as script
import models
import multilabel_classify
import segment
from tests import job
from tests.conftest import Script, TinySegmenter, write_folder
from tests.launch import SMALL, launch, run
from tests.reference import load
from tests.runs import LAST, LAST_OF_COCO, MEASURED, PAIR, assert_same, content, epochs
from utils import checkpoint, trainer


def slow(*cases):
    """These cases of a test, for `make test-all`."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


DLAS = 'dla60x dla60x_elastic'


@pytest.mark.parametrize('world, names', [(2, 'tiny seg'), (3, 'tiny seg'), *slow((2, DLAS), (3, DLAS))])
def test_gradients_shared_evaluation_and_averages_are_those_of_one_process(world, names, tmp_path, tiny, monkeypatch):
    """Gradients are sent once per update, running statistics never. The DLAs carry along what nothing trains."""
    monkeypatch.setitem(models.segmenters, 'seg', TinySegmenter)
    run(world, 'checks', tmp_path, *names.split())
    found = [torch.load(tmp_path / f'{number}.pt') for number in range(world)]
    assert [process['averages'] for process in found] == [[(world - 1) / 2, number] for number in range(world)]
    assert all(torch.equal(process['means'], job.normalised(number)) for number, process in enumerate(found))
    for name in names.split():
        assert_gradients(job.accumulated(name), [process['gradients'][name] for process in found])
    for key, expected in job.measures(share=False).items():
        for process in found:
            result = process['measures'][key]
            assert result.pop('loss') == pytest.approx(expected['loss'], rel=1e-6)
            rest = {name: value for name, value in expected.items() if name != 'loss'}
            if key[0] == 'coco':
                assert result.pop('classes') == [pytest.approx(row) for row in rest.pop('classes')]
            assert result == (pytest.approx(rest) if key[0] == 'coco' else rest), key


def test_what_nothing_trains_asks_for_no_gradient():
    """Processes would wait for it."""
    recorded = {name: golden['train']['no_gradient'] for name, golden in load('golden').items()}
    for name in filter(recorded.get, recorded):
        build = models.build_segmenter if name.endswith('/seg') else models.build_classifier
        with torch.device('meta'):
            net = build(name.removesuffix('/seg'))
        assert [key for key, p in net.named_parameters() if not p.requires_grad] == recorded[name]


def assert_gradients(expected, found):
    """The processes' gradients are the sum of an update's at its end, and not before."""
    assert all(gradients.keys() == expected.keys() for gradients in found)
    for key, value in expected.items():
        ours = [gradients[key] for gradients in found]
        if key.startswith('1 '):
            for gradient in ours:
                torch.testing.assert_close(gradient, value, rtol=1e-6, atol=1e-9)
        elif value.abs().max() > 1e-12:
            assert not torch.allclose(ours[0], ours[1])


@pytest.fixture(scope='module', params=[2, *slow((3,))])
def trained(request, tmp_path_factory):
    """A job of classify.py that is left alone: its size, arguments, folder, last checkpoint and what it printed."""
    world, place = request.param, tmp_path_factory.mktemp('job')
    arguments = [write_folder(place / 'pictures'), *SMALL, '-b', 6 * world, '-g', 2 * world]
    out = run(world, 'classify', *arguments, '--output', place / 'run')
    saved = checkpoint.read(place / 'run' / LAST)
    return SimpleNamespace(world=world, arguments=arguments, run=place / 'run', out=out, saved=saved)


@pytest.fixture
def alone(trained, tiny):
    """classify.py with the job's arguments, in this process."""
    return Script(script, trained.arguments[0], ' '.join(map(str, trained.arguments[1:])))


@pytest.fixture
def told(monkeypatch):
    """Results of evaluations in this process."""
    results, real = [], trainer.evaluate
    monkeypatch.setattr(trainer, 'evaluate', lambda *arguments: results.append(real(*arguments)) or results[-1])
    return results


def test_training_equals_one_process_with_as_many_micro_batches(trained, alone, tmp_path):
    """Each process normalises what a micro-batch of the single process holds, so weights agree; statistics do not."""
    alone('--output', tmp_path)
    saved, one = trained.saved, checkpoint.read(tmp_path / LAST).state_dict
    for name in one.keys() - saved.processes[0]['statistics'].keys():
        torch.testing.assert_close(saved.state_dict[name], one[name], rtol=1e-4, atol=1e-5)
    statistics = [process['statistics']['bn3.running_mean'] for process in saved.processes]
    assert len(statistics) == trained.world
    assert not torch.equal(statistics[0], statistics[1])
    assert torch.equal(statistics[0], saved.state_dict['bn3.running_mean'])


def test_every_line_is_said_once_in_the_form_of_the_reference(trained):
    steps = 12 // trained.world
    lines = trained.out.splitlines()
    train = [re.fullmatch(rf'Epoch: \[(\d)\]\[(\d+)/(\d+)\]\tTime {PAIR}\tData {PAIR}\t{MEASURED}', x) for x in lines]
    assert [m.groups() for m in train if m] == [(e, str(i), str(steps)) for e in '01' for i in range(steps)]
    assert len([line for line in lines if line.startswith(' * Err@1')]) == 2
    assert [record.get('epoch') for record in epochs(trained.run)] == [None, 0, 1]


def test_the_mean_of_what_each_process_finds_is_reported(trained, alone, told, tmp_path):
    for process in trained.saved.processes:
        torch.save({'state_dict': trained.saved.state_dict | process['statistics']}, tmp_path / 'part.pth')
        alone('--evaluate', '--resume', tmp_path / 'part.pth')
    assert len({results['loss'] for results in told}) == trained.world
    mean = {name: sum(results[name] for results in told) / trained.world for name in ('loss', 'err1', 'err5')}
    assert epochs(trained.run)[-1]['val'] == pytest.approx(mean)


KILLS = (2, '0:2'), (2, '0:5'), (2, '1:6'), (3, '2:2'), (3, '0:3')


@pytest.mark.parametrize('trained, kill', [(2, '1:3'), *slow(*KILLS)], indirect=['trained'])
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
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=1e-6, atol=1e-6)


def test_averaged_statistics_are_saved_and_shared_evaluation_reports_them(folder, classify, told, tmp_path):
    run(2, 'classify', folder, *SMALL, '--average-bn', '--output', tmp_path)
    first, second = (process['statistics'] for process in checkpoint.read(tmp_path / LAST).processes)
    assert_same(first, second)
    classify('--evaluate', '--resume', tmp_path / LAST)
    reported = epochs(tmp_path)[-1]['val']
    assert (told[0]['err1'], told[0]['err5']) == (reported['err1'], reported['err5'])


def test_coco_as_a_job(coco, tiny, tmp_path, capsys):
    arguments = [coco, *SMALL, '-b', 8, '--output', tmp_path / 'run']
    assert run(2, 'multilabel_classify', *arguments).count('   mAP ') == 2
    arguments += ['--evaluate', '--resume', tmp_path / 'run' / LAST_OF_COCO]
    Script(multilabel_classify, arguments[0])(*arguments[1:])
    alone = capsys.readouterr().out.splitlines()
    assert run(2, 'multilabel_classify', *arguments).splitlines()[-2:] == alone[-2:]


def test_voc_as_a_job(devkit, tiny, tmp_path, capsys):
    common = f'--exp x --data {devkit} -a tiny --crop-size 33 --epochs 2 --workers 0 --device cpu -p 1'.split()
    arguments = [*common, '--base-lr', 0.05, '--batch-size', 4, '--freeze-bn']
    alone, places = Script(segment, '--exp=x'), (tmp_path / '2', tmp_path / '1')
    outs = [run(2, 'segment', *arguments, '--train', '--output', places[0])]
    alone(*arguments, '--train', '--output', places[1])
    outs.append(capsys.readouterr().out)
    lines = [[line for line in out.splitlines() if line.startswith('epoch: ')] for out in outs]
    assert [len(part) for part in lines] == [6, 8]  # 13 images: the last one, alone, cannot be shared
    arguments += ['--resume', places[0] / 'deeplab_tiny_pascal_v3_x_epoch2.pth', '--output']
    out = run(2, 'segment', *arguments, places[0]).splitlines()
    alone(*arguments, places[1])
    assert out[-23:] == capsys.readouterr().out.splitlines()[-23:]
    pictures = [{path.name: path.read_bytes() for path in (place / 'val').iterdir()} for place in places]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 3


def test_docker_classifys_lines_are_averages_over_the_processes(folder, tmp_path):
    """As in the log, which was counted over all of them; every process measures other batches."""
    lines = run(2, 'docker_classify', folder, *SMALL, '-b', 6, '--output', tmp_path).splitlines()
    for part, start in ('train', 'Epoch: '), ('val', 'Test: '):
        found = [re.findall(r'(?:Loss|Err@1|Err@5) (\S+) \((\S+)\)', line) for line in lines if line.startswith(start)]
        for epoch, record in enumerate(epochs(tmp_path)[1:]):
            values = torch.tensor([[[float(number) for number in pair] for pair in line] for line in found])
            own = values.view(2, -1, 3, 2)[epoch]
            logged = [record[part][name] for name in ('loss', 'err1', 'err5')]
            assert own[-1, :, 1].tolist() == pytest.approx(logged, abs=2e-3)
            if part == 'train':  # all batches are of one size
                assert own[:, :, 0].mean(0).tolist() == pytest.approx(logged, abs=2e-3)


def test_processes_with_unequal_numbers_of_batches_do_not_wait_for_each_other(folder, classify, tmp_path):
    classify('--epochs', 1, '--output', tmp_path)
    (folder / 'val' / 'fox' / '0.png').unlink()  # 17 pictures: one process tests 8 and 1, the other 8
    out = run(2, 'docker_classify', folder, *SMALL, '-b', 8, '--evaluate', '--resume', tmp_path / LAST)
    assert re.findall(r'Test: (\S+)', out) == ['[0/2]']
    assert out.count(' * Err@1 ') == 1
