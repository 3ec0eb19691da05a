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
from tests.reference import load_weights
from tools import model_table, released
from utils import checkpoint
from utils.errors import exit_cleanly
from utils.metrics import TopErrors
from utils.signals import Stopped

IMAGENET = 'imagenet_models/resnext50_elastic.pth.tar'
OTHER = 'imagenet_models/densenet201_elastic.pth.tar'
COCO = 'coco_models/coco_dla60x.pth.tar'
VOC = 'pascal_models/deeplab_dla60x_pascal_v3_original_epoch50.pth'
FILES = IMAGENET, OTHER, COCO, VOC
PLACES = {name: os.path.basename(name) for name in FILES} | {COCO: COCO}  # beside each other, or in their folders
COLUMNS = 'P_C', 'R_C', 'F_C', 'P_O', 'R_O', 'F_O', 'mAP'


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """4 + 4 scenes in the layouts of all three tasks."""
    root = tmp_path_factory.mktemp('sample')
    write_sample(root, 0, {'train': 4, 'val': 4}, 1)
    return root


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Tiny nets under released names, in files and registries, with heads of the sample's classes."""
    (tmp_path / 'weights' / 'coco_models').mkdir(parents=True)
    for number, name in enumerate(FILES):
        task, arch = released.RELEASED[name]
        build = TinySegmenter if task == 'voc' else TinyNet
        monkeypatch.setitem(models.segmenters if task == 'voc' else models.classifiers, arch, build)
        net = load_weights(build(21 if task == 'voc' else len(CLASS_NAMES)))
        head = net.get_submodule(net.heads[0])
        head.weight.data, head.bias.data = head.weight.roll(number, 0), 0 * head.bias
        said = {} if task == 'voc' else {'arch': arch}
        torch.save({**said, 'state_dict': checkpoint.state_dict(net)}, tmp_path / 'weights' / PLACES[name])
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


def test_the_numbers_are_those_that_the_scripts_print(tool, data, sample, weights, tmp_path, capsys):
    tool(*data)
    rows = {name: row['measured'] for name, row in record(tmp_path).items()}
    assert tuple(rows) == FILES
    errors = ' * Err@1 {err1:.3f} Err@5 {err5:.3f}\n'
    scores = ' * ' + ' '.join(f'{name} {{{name}:.2f}}' for name in COLUMNS).replace(' mAP', '\n   mAP')
    voc = f'--exp=x --data {sample}/VOCdevkit --output {tmp_path}/voc'
    for name, script, words, form in (
        (IMAGENET, classify, f'{sample}/imagenet --evaluate', errors),
        (OTHER, classify, f'{sample}/imagenet --evaluate', errors),
        (COCO, multilabel_classify, f'{sample}/coco --evaluate', scores),
        (VOC, segment, voc, '\nMean IoU: {miou:.2f}\n'),
    ):
        capsys.readouterr()
        _, arch = released.RELEASED[name]
        Script(script, *words.split(' ', 1))('--device', 'cpu', '-j', 0, '-a', arch, '--resume', weights / PLACES[name])
        assert form.format(**rows[name]) in capsys.readouterr().out
    assert rows[IMAGENET]['loss'] != rows[OTHER]['loss']
    assert 0 < rows[VOC]['miou'] < 100
    assert 0 < rows[COCO]['F_O'] < 100
    masks = [path.name for path in (tmp_path / 'out').glob('deeplab_dla60x*/val/*.png')]
    assert sorted(masks) == sorted(path.name for path in (tmp_path / 'voc' / 'val').iterdir())


def test_the_tables_have_cost_published_numbers_and_differences(tool, data, tmp_path, capsys):
    tool(*data)
    text = capsys.readouterr().out
    assert text == (tmp_path / 'out' / 'released.md').read_text()
    row, parameters = record(tmp_path)[OTHER], sum(value.numel() for value in TinyNet().parameters())
    err1, err5 = (row['measured'][name] for name in ('err1', 'err5'))
    assert (row['parameters'], row['difference']) == (parameters, {'err1': err1 - 22.1, 'err5': err5 - 6})
    header = '| net | parameters (M) | GMACs at 224 | published (%) | source | Err@1 (%) | Err@5 (%) | difference |'
    shown = f'Err@1 22.1, Err@5 6.0 | {model_table.CSPNET} | {err1:.2f} | {err5:.2f}'
    difference = f'Err@1 {err1 - 22.1:+.2f}, Err@5 {err5 - 6:+.2f}'
    assert header in text and f' | {shown} | {difference} |\n' in text
    assert len(re.findall(r'^\| dla60x \| 0.0\d \| [\d.]+ \| - \| - \| .* \| - \|$', text, re.M)) == 2  # COCO's, VOC's
    assert '\n- Files that were not there: coco_resnext50.pth.tar, coco_resnext50_elastic.pth.tar,' in text


def test_only_what_is_not_known_or_has_changed_is_measured(tool, sample, weights, measured, tmp_path, capsys):
    first, second, third, fourth = map(os.path.basename, FILES)
    images, coco = ('--imagenet', shutil.copytree(sample / 'imagenet', tmp_path / 'own')), ('--coco', sample / 'coco')
    tool(*images)
    assert measured == [first, second]
    kept = record(tmp_path)
    tool(*images, *coco)
    assert measured[2:] == [third]
    assert {name: record(tmp_path)[name] for name in kept} == kept
    tool(*coco)
    assert capsys.readouterr().out.endswith((tmp_path / 'out' / 'released.md').read_text())
    assert len(measured) == 3
    os.utime(weights / COCO, (1e9, 1e9))
    tool(*images, *coco)
    assert measured[3:] == [third]
    tool('--voc', sample / 'VOCdevkit', '--amp', 'bf16')
    assert measured[4:] == [fourth]
    assert '- dla60x was measured with --amp bf16.\n' in (tmp_path / 'out' / 'released.md').read_text()
    os.utime(tmp_path / 'own' / 'val' / CLASS_NAMES[0], (1e9, 1e9))  # as if a picture had been added or removed
    tool(*images)
    assert measured[5:] == [first, second]


@pytest.mark.parametrize('began', [1, 2])
def test_a_stopped_call_goes_on_with_the_rest(tool, data, measured, monkeypatch, tmp_path, began):
    """Stopped within the second file, or as the first one is complete, where nothing is left to stop in there."""
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        if began == 2:
            stop_at(patch, 9)  # 8 pictures are tested
        else:
            patch.setattr(TopErrors, 'summary', lambda *_: os.kill(os.getpid(), signal.SIGTERM) or '')
        tool(*data)
    assert stopped.value.code == 143
    kept = record(tmp_path)
    assert (list(kept), len(measured)) == ([IMAGENET], began)
    tool(*data)
    assert measured[began:] == [os.path.basename(name) for name in FILES[1:]]
    assert record(tmp_path)[IMAGENET] == kept[IMAGENET]
    assert tuple(record(tmp_path)) == FILES


def test_a_damaged_file_does_not_keep_the_others_from_being_measured(tool, data, weights, measured, tmp_path, capsys):
    damaged = weights / 'resnext50_elastic.pth.tar'
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1000])
    torch.save(TinyNet(5).state_dict(), weights / COCO)
    with pytest.raises(SystemExit) as end:
        exit_cleanly(lambda: tool(*data))
    assert end.value.code == 1
    told = capsys.readouterr()
    last = told.err.splitlines()[-1]
    assert last.startswith(f'error: 2 of 4 files could not be measured: {damaged}: not a PyTorch checkpoint')
    assert f'{weights / COCO} cannot be evaluated here: its head has 5 classes, not 8' in last
    assert f'\n- resnext50_elastic was not measured: {damaged}: not a PyTorch checkpoint' in told.out
    assert re.search(r'^\| resnext50_elastic \| .* \| - \| - \| - \|$', told.out, re.M)
    assert [name for name, row in record(tmp_path).items() if 'measured' in row] == [OTHER, VOC]
    damaged.write_bytes(whole)
    tool(*data[:2])
    assert measured[4:] == ['resnext50_elastic.pth.tar']


def test_what_is_missing_is_told_in_a_line(tool, data, tmp_path, capsys):
    assert 'nothing to evaluate on: give --imagenet DIR, --coco DIR or --voc DIR' in tool.error(capsys)
    assert tool.error(capsys, '--coco', tmp_path / 'no') == f'error: no folder {tmp_path}/no'
    assert tool.error(capsys, '--coco', tmp_path) == f'error: no folder {tmp_path}/val2014'
    (tmp_path / 'empty').mkdir()
    error = Script(released, tmp_path / 'empty', f'--output {tmp_path}/out').error(capsys, *data)
    assert error.startswith(f'error: {tmp_path}/empty holds no released file; their names are resnext50.pth.tar, ')
    assert error.endswith(', deeplab_dla60x_elastic_pascal_v3_original_epoch50.pth')
    for content in '{', '[1]', '{"x": 1}', json.dumps({IMAGENET: {'net': 'x'}}), '5':
        (tmp_path / 'out' / 'released.json').write_text(content)
        assert f'error: {tmp_path}/out/released.json is damaged or not of this tool' in tool.error(capsys, *data)


def test_the_released_files_are_of_nets_in_the_registries():
    assert len(released.RELEASED) == 10 + 8 + 6
    assert all(arch in released.TASKS[task] for task, arch in released.RELEASED.values())
    assert model_table.PUBLISHED.keys() <= {arch for task, arch in released.RELEASED.values() if task == 'imagenet'}
