"""The reproduction of the paper's tables: heads fitted to the sample's classes, under the released names."""

import json
import os
import re
import shutil
import signal

import pytest
import torch

import classify
import models
import multilabel_classify
import segment
from data.sample import write_sample
from data.scenes import CLASS_NAMES
from tests.conftest import Script, TinyNet, TinySegmenter, stop_at
from tools import model_table, released
from utils import checkpoint
from utils.data import MEAN, STD
from utils.errors import exit_cleanly
from utils.image_folder import central_crop, open_folder
from utils.interrupt import Stopped
from utils.metrics import TopErrors

IMAGENET = 'imagenet_models/resnext50_elastic.pth.tar'
OTHER = 'imagenet_models/densenet201_elastic.pth.tar'
COCO = 'coco_models/coco_dla60x.pth.tar'
VOC = 'pascal_models/deeplab_dla60x_pascal_v3_original_epoch50.pth'
FILES = IMAGENET, OTHER, COCO, VOC
COLUMNS = 'P_C', 'R_C', 'F_C', 'P_O', 'R_O', 'F_O', 'mAP'


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """4 + 4 scenes in the layouts of all three tasks."""
    root = tmp_path_factory.mktemp('sample')
    write_sample(root, 0, {'train': 4, 'val': 4}, 1)
    return root


@pytest.fixture(scope='module')
def pictures(sample):
    """The test pictures of the classes, normalised, 8 x 3 x 224 x 224."""
    images = torch.stack([image for image, _ in open_folder(sample / 'imagenet' / 'val', central_crop(224))])
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images / 255 - mean) / std


@pytest.fixture
def weights(tmp_path, monkeypatch, pictures):
    """Tiny nets under released names, in files and registries, with heads of the sample's classes, which vary."""
    (tmp_path / 'weights' / 'coco_models').mkdir(parents=True)
    for seed, name in enumerate(FILES, 1):
        of = released.RELEASED[name]
        build = TinySegmenter if of.task == 'voc' else TinyNet
        monkeypatch.setitem(models.segmenters if of.task == 'voc' else models.classifiers, of.arch, build)
        torch.manual_seed(seed)
        net = build(21 if of.task == 'voc' else len(CLASS_NAMES)).eval()
        with torch.no_grad():
            outputs = net(pictures)
            net.get_submodule(net.heads[0]).bias -= outputs.transpose(0, 1).flatten(1).mean(1)
        content = {'epoch': 120, 'state_dict': checkpoint.state_dict(net)}
        place = name if of.task == 'coco' else os.path.basename(name)
        torch.save(content if of.task == 'voc' else {'arch': of.arch, **content}, tmp_path / 'weights' / place)
    return tmp_path / 'weights'


@pytest.fixture
def tool(weights, tmp_path):
    """The tool on the weights; data is the caller's to name."""
    return Script(released, weights, f'--output {tmp_path}/out --device cpu -j 0')


@pytest.fixture
def data(sample):
    """The flags of all three data sets."""
    return '--imagenet', sample / 'imagenet', '--coco', sample / 'coco', '--voc', sample / 'VOCdevkit'


@pytest.fixture
def measured(monkeypatch):
    """The names of the files whose evaluation began."""
    names, run = [], released.run
    monkeypatch.setattr(released, 'run', lambda make, own, stop: names.append(own.resume.name) or run(make, own, stop))
    return names


def record(tmp_path) -> dict:
    return json.loads((tmp_path / 'out' / 'released.json').read_text())


def printed(capsys, script, *arguments) -> str:
    """What a script prints of an evaluation."""
    capsys.readouterr()
    Script(script, arguments[0], '--device cpu -j 0')(*arguments[1:])
    return capsys.readouterr().out


def test_the_numbers_are_those_that_the_scripts_print(tool, data, sample, weights, tmp_path, capsys):
    tool(*data)
    rows = {name: row['measured'] for name, row in record(tmp_path).items()}
    assert tuple(rows) == FILES
    for name in IMAGENET, OTHER:
        path, arch = weights / os.path.basename(name), released.RELEASED[name].arch
        out = printed(capsys, classify, sample / 'imagenet', '--evaluate', '--resume', path, '-a', arch)
        assert out.splitlines()[-1] == ' * Err@1 {err1:.3f} Err@5 {err5:.3f}'.format(**rows[name])
    out = printed(capsys, multilabel_classify, sample / 'coco', '-e', '--resume', weights / COCO, '-a', 'dla60x')
    scores = ' * P_C {P_C:.2f} R_C {R_C:.2f} F_C {F_C:.2f} P_O {P_O:.2f} R_O {R_O:.2f} F_O {F_O:.2f}\n   mAP {mAP:.2f}'
    assert scores.format(**rows[COCO]) in out
    voc = ['--exp=x', '--data', sample / 'VOCdevkit', '--output', tmp_path / 'voc', '-a', 'dla60x']
    out = printed(capsys, segment, *voc, '--resume', weights / os.path.basename(VOC))
    assert f'\nMean IoU: {rows[VOC]["miou"]:.2f}\n' in out
    assert rows[IMAGENET]['loss'] != rows[OTHER]['loss']
    assert 0 < rows[VOC]['miou'] < 100
    assert 0 < rows[COCO]['F_O'] < 100
    masks = [path.name for path in (tmp_path / 'out').glob('deeplab_dla60x*/val/*.png')]
    assert sorted(masks) == sorted(path.name for path in (tmp_path / 'voc' / 'val').iterdir())


def test_the_tables_have_cost_published_numbers_and_differences(tool, data, tmp_path, capsys):
    tool(*data)
    told = capsys.readouterr()
    assert told.out == (tmp_path / 'out' / 'released.md').read_text()
    for name in IMAGENET, OTHER:
        assert f'\n{os.path.basename(name)}:  * Err@1 ' in told.err
    cells = [line.strip('| ').split(' | ') for line in told.out.splitlines() if line.startswith('| ')]
    start, rows = ['net', 'parameters (M)'], record(tmp_path)
    kinds = ('224', ('Err@1', 'Err@5')), ('224', COLUMNS), ('513', ('Mean IoU',))
    assert [row for row in cells if row[0] == 'net'] == [
        [*start, f'GMACs at {size}', 'published (%)', 'source', *(f'{name} (%)' for name in names), 'difference']
        for size, names in kinds
    ]
    known = {row[0] + f' {len(row)}': row for row in cells}  # the tables differ in their number of columns
    err1, err5 = (rows[OTHER]['measured'][name] for name in ('err1', 'err5'))
    parameters = sum(value.numel() for value in TinyNet().parameters())
    assert rows[OTHER]['parameters'] == parameters
    assert known['densenet201_elastic 8'][:2] == ['densenet201_elastic', f'{parameters / 1e6:.2f}']
    assert known['densenet201_elastic 8'][3:] == [
        'Err@1 22.1, Err@5 6.0', model_table.CSPNET, f'{err1:.2f}', f'{err5:.2f}',
        f'Err@1 {err1 - 22.1:+.2f}, Err@5 {err5 - 6:+.2f}',
    ]  # fmt: skip
    assert rows[OTHER]['difference'] == {'err1': err1 - 22.1, 'err5': err5 - 6}
    for name, row in (COCO, known['dla60x 13']), (VOC, known['dla60x 7']):
        assert (row[3:5], row[-1], rows[name]['difference']) == (['-', '-'], '-', {})
    assert '\n- Files that were not there: coco_resnext50.pth.tar, coco_resnext50_elastic.pth.tar,' in told.out


def test_only_what_is_not_known_is_measured(tool, data, weights, measured, tmp_path, capsys):
    tool(*data[:2])
    assert measured == ['resnext50_elastic.pth.tar', 'densenet201_elastic.pth.tar']
    first = record(tmp_path)
    tool(*data)
    assert measured[2:] == ['coco_dla60x.pth.tar', 'deeplab_dla60x_pascal_v3_original_epoch50.pth']
    assert {name: record(tmp_path)[name] for name in first} == first
    tool(*data[2:4])
    assert capsys.readouterr().out.endswith((tmp_path / 'out' / 'released.md').read_text())
    assert len(measured) == 4
    os.utime(weights / COCO, (1e9, 1e9))
    tool(*data)
    assert measured[4:] == ['coco_dla60x.pth.tar']
    tool(*data[4:], '--amp', 'bf16')
    assert measured[5:] == ['deeplab_dla60x_pascal_v3_original_epoch50.pth']
    assert '- dla60x was measured with --amp bf16.\n' in (tmp_path / 'out' / 'released.md').read_text()


def test_data_that_changed_is_measured_again(tool, sample, measured, tmp_path):
    val = tmp_path / 'own' / 'val'
    shutil.copytree(sample / 'imagenet' / 'val', val)
    for _ in range(2):
        tool('--imagenet', tmp_path / 'own')
    assert len(measured) == 2
    os.utime(val / CLASS_NAMES[0], (1e9, 1e9))  # as if a picture had been added or removed
    tool('--imagenet', tmp_path / 'own')
    assert len(measured) == 4


def stop_in_summary(monkeypatch, call):
    """Send this process SIGTERM where the errors counted `call` are complete: nothing is left to stop in there."""
    calls, summary = [], TopErrors.summary

    def stopping(self, results):
        calls.append(results)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return summary(self, results)

    monkeypatch.setattr(TopErrors, 'summary', stopping)


@pytest.mark.parametrize('place, done', [('within', [IMAGENET]), ('after', [IMAGENET, OTHER])])
def test_a_stopped_call_goes_on_with_the_rest(tool, data, pictures, measured, monkeypatch, tmp_path, place, done):
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        if place == 'within':
            stop_at(patch, len(pictures) + 1)  # the second net's first
        else:
            stop_in_summary(patch, 2)
        tool(*data)
    assert stopped.value.code == 143
    kept = record(tmp_path)
    assert list(kept) == done
    assert len(measured) == 2
    tool(*data)
    assert measured[2:] == [os.path.basename(name) for name in FILES if name not in done]
    assert {name: record(tmp_path)[name] for name in done} == kept
    assert tuple(record(tmp_path)) == FILES


def test_a_damaged_file_does_not_keep_the_others_from_being_measured(tool, data, weights, measured, tmp_path, capsys):
    damaged = weights / 'resnext50_elastic.pth.tar'
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1000])
    torch.save(TinyNet(5).state_dict(), weights / COCO)
    with pytest.raises(SystemExit) as end:
        exit_cleanly(lambda: tool(*data))
    told = capsys.readouterr()
    assert end.value.code == 1
    last = told.err.splitlines()[-1]
    assert last.startswith(f'error: 2 of 4 files could not be measured: {damaged}: not a PyTorch checkpoint')
    assert f'{weights / COCO} cannot be evaluated here: its head has 5 classes, not 8' in last
    text = (tmp_path / 'out' / 'released.md').read_text()
    assert text == told.out
    assert f'\n- resnext50_elastic was not measured: {damaged}: not a PyTorch checkpoint' in text
    assert re.search(r'^\| resnext50_elastic \| .* \| - \| - \| - \|$', text, re.M)
    assert [name for name, row in record(tmp_path).items() if 'measured' in row] == [OTHER, VOC]
    damaged.write_bytes(whole)
    del measured[:]
    tool(*data[:2])
    assert measured == ['resnext50_elastic.pth.tar']


def test_what_is_missing_is_told_in_a_line(tool, data, weights, tmp_path, capsys):
    assert tool.error(capsys) == (
        'error: nothing to evaluate on: give --imagenet DIR, --coco DIR or --voc DIR, or several of them'
    )
    assert tool.error(capsys, '--coco', tmp_path / 'no') == f'error: no folder {tmp_path}/no'
    assert tool.error(capsys, '--coco', tmp_path) == f'error: no folder {tmp_path}/val2014'
    (tmp_path / 'empty').mkdir()
    empty = Script(released, tmp_path / 'empty', f'--output {tmp_path}/out')
    error = empty.error(capsys, *data)
    assert error.startswith(f'error: {tmp_path}/empty holds no released file; their names are resnext50.pth.tar, ')
    assert error.endswith(', deeplab_dla60x_elastic_pascal_v3_original_epoch50.pth')
    assert 'no folder' in Script(released, tmp_path / 'nowhere').error(capsys, *data)
    assert not (tmp_path / 'out').exists() or not (tmp_path / 'out' / 'released.json').exists()


@pytest.mark.parametrize('content', ['{', '[1]', '{"x": 1}', json.dumps({IMAGENET: {'net': 'x'}}), '5'])
def test_a_record_of_another_form_is_told(tool, data, tmp_path, capsys, content):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'released.json').write_text(content)
    assert f'error: {tmp_path}/out/released.json is damaged or not of this tool' in tool.error(capsys, *data)


def test_the_released_files_are_of_nets_in_the_registries():
    assert len(released.RELEASED) == 10 + 8 + 6
    for name, of in released.RELEASED.items():
        assert of.arch in released.TASKS[of.task], name
    quoted = {of.arch: (of.published, of.source) for of in released.RELEASED.values() if of.published}
    assert quoted == model_table.PUBLISHED
