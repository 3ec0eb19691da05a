"""The reproduction of the paper's tables: heads fitted to the sample's classes, under the released names."""

import json
import os
import re
import shutil
import signal

import pytest
import torch

import classify
import multilabel_classify
import segment
from data.sample import write_sample
from data.scenes import CLASS_NAMES
from tests.checkpoints import save_net
from tests.conftest import Script, TinyNet, TinySegmenter
from tools import model_table, released
from utils.errors import UserError, exit_cleanly
from utils.metrics import TopKError
from utils.signals import Stopped

IMAGENET = 'imagenet_models/resnext50_elastic.pth.tar'
OTHER = 'imagenet_models/densenet201_elastic.pth.tar'
COCO = 'coco_models/coco_dla60x.pth.tar'
VOC = 'pascal_models/deeplab_dla60x_pascal_v3_original_epoch50.pth'
FILES = IMAGENET, OTHER, COCO, VOC
PLACES = {name: os.path.basename(name) for name in FILES} | {COCO: COCO}  # beside each other, or in their folders
COLUMNS = 'P_C', 'R_C', 'F_C', 'P_O', 'R_O', 'F_O', 'mAP'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """The flags of all three data sets, layouts of 4 + 4 scenes."""
    root = tmp_path_factory.mktemp('sample')
    write_sample(root, 0, {'train': 4, 'val': 4}, 1)
    return '--imagenet', root / 'imagenet', '--coco', root / 'coco', '--voc', root / 'VOCdevkit'


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Tiny nets under released names, in files and registries, with heads of the sample's classes."""
    (tmp_path / 'weights' / 'coco_models').mkdir(parents=True)
    for number, name in enumerate(FILES):
        task, arch = released.RELEASED[name]
        said, build, classes = {'arch': arch}, TinyNet, len(CLASS_NAMES)
        if task == 'voc':
            said, build, classes = {}, TinySegmenter, 21
        monkeypatch.setitem(released.TASKS[task], arch, build)
        save_net(tmp_path / 'weights' / PLACES[name], build(classes), roll=number, **said)
    return tmp_path / 'weights'


@pytest.fixture
def tool(weights, tmp_path):
    """The tool on the weights; data is the caller's to name."""
    return Script(released, weights, f'--output {tmp_path}/out --device cpu -j 0')


@pytest.fixture
def measured(monkeypatch):
    """The names of the files whose evaluation began."""
    names, arguments = [], released.script_arguments
    monkeypatch.setattr(released, 'script_arguments', lambda *args: names.append(args[2].name) or arguments(*args))
    return names


def record(tmp_path) -> dict:
    return json.loads((tmp_path / 'out' / 'released.json').read_text())


def test_numbers_are_the_scripts_beside_cost_and_published_ones(tool, data, weights, tmp_path, capsys):
    tool(*data)
    text = capsys.readouterr().out
    assert text == (tmp_path / 'out' / 'released.md').read_text()
    whole = record(tmp_path)
    assert tuple(whole) == FILES
    errors = ' * Err@1 {err1:.3f} Err@5 {err5:.3f}\n'
    scores = ' * ' + ' '.join(f'{name} {{{name}:.2f}}' for name in COLUMNS).replace(' mAP', '\n   mAP')
    _, imagenet, _, coco, _, devkit = data
    for name, script, words, form in (
        (IMAGENET, classify, f'{imagenet} --evaluate', errors),
        (OTHER, classify, f'{imagenet} --evaluate', errors),
        (COCO, multilabel_classify, f'{coco} --evaluate', scores),
        (VOC, segment, f'--exp=x --data {devkit} --output {tmp_path}/voc', '\nMean IoU: {miou:.2f}\n'),
    ):
        _, arch = released.RELEASED[name]
        Script(script, *words.split(' ', 1))('--device', 'cpu', '-j', 0, '-a', arch, '--resume', weights / PLACES[name])
        assert form.format(**whole[name]['measured']) in capsys.readouterr().out
    assert whole[IMAGENET]['measured']['loss'] != whole[OTHER]['measured']['loss']
    assert 0 < whole[VOC]['measured']['miou'] < 100
    assert 0 < whole[COCO]['measured']['F_O'] < 100
    masks = [path.name for path in (tmp_path / 'out').glob('deeplab_dla60x*/val/*.png')]
    assert sorted(masks) == sorted(path.name for path in (tmp_path / 'voc' / 'val').iterdir())

    row, parameters = whole[OTHER], sum(value.numel() for value in TinyNet().parameters())
    err1, err5 = (row['measured'][name] for name in ('err1', 'err5'))
    assert (row['parameters'], row['difference']) == (parameters, {'err1': err1 - 22.1, 'err5': err5 - 6})
    shown = f'Err@1 22.1, Err@5 6.0 | {model_table.CSPNET} | {err1:.2f} | {err5:.2f}'
    assert '| published (%) | source | Err@1 (%) | Err@5 (%) | difference |\n' in text
    assert f' | {shown} | Err@1 {err1 - 22.1:+.2f}, Err@5 {err5 - 6:+.2f} |\n' in text
    assert len(re.findall(r'^\| dla60x \| 0.0\d \| [\d.]+ \| - \| - \| .* \| - \|$', text, re.M)) == 2  # COCO's, VOC's
    assert '\n- Files that were not measured: coco_resnext50.pth.tar, coco_resnext50_elastic.pth.tar,' in text


def test_only_what_is_not_known_is_measured(tool, weights, data, measured, tmp_path, capsys):
    first, second, third, fourth = map(os.path.basename, FILES)
    kept = {}
    for arguments, expected in (
        (data[:2], [first, second]),
        (data[:4], [third]),
        (data[2:4], []),
        ((*data, '--amp', 'bf16'), [fourth]),
    ):
        measured.clear()
        tool(*arguments)
        assert measured == expected
        assert kept.items() <= record(tmp_path).items()
        kept = record(tmp_path)
        tables = (tmp_path / 'out' / 'released.md').read_text()
        assert capsys.readouterr().out.endswith(tables)
    assert tables.count('- dla60x was measured with --amp bf16.\n') == 1
    shutil.copytree(data[1], tmp_path / 'others')
    os.utime(weights / PLACES[FILES[1]])
    for folder, expected in (data[1], [second]), (tmp_path / 'others', [first, second]):
        measured.clear()
        tool('--imagenet', folder, *data[2:])
        assert measured == expected


def test_a_stopped_call_goes_on_with_the_rest(tool, data, measured, monkeypatch, tmp_path):
    """Stopped as the first file is complete, where nothing is left to stop in there."""
    with monkeypatch.context() as patch, pytest.raises(Stopped, match='^143$'):
        patch.setattr(TopKError, 'summary', lambda *_: os.kill(os.getpid(), signal.SIGTERM) or '')
        tool(*data)
    kept = record(tmp_path)
    assert (list(kept), len(measured)) == ([IMAGENET], 1)
    tool(*data)
    assert measured[1:] == [os.path.basename(name) for name in FILES[1:]]
    assert record(tmp_path)[IMAGENET] == kept[IMAGENET]
    assert tuple(record(tmp_path)) == FILES


def test_a_damaged_file_does_not_keep_the_others_from_being_measured(tool, data, weights, measured, tmp_path, capsys):
    damaged = weights / PLACES[IMAGENET]
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    torch.save(TinyNet(5).state_dict(), weights / COCO)
    with pytest.raises(SystemExit, match='^1$'):
        exit_cleanly(lambda: tool(*data))
    told, last = capsys.readouterr()
    fault = f'{damaged}: not a PyTorch checkpoint'
    last = last.splitlines()[-1]
    assert last.startswith(f'error: 2 of 4 files could not be measured: {fault}')
    assert f'{weights / COCO} cannot be evaluated here: its head has 5 classes, not 8' in last
    assert '\n- Files that were not measured: resnext50.pth.tar, resnext50_elastic.pth.tar, ' in told
    assert list(record(tmp_path)) == [OTHER, VOC]
    with pytest.raises(UserError, match='^2 of 4 files'):
        tool(*data)
    assert measured[4:] == [damaged.name, os.path.basename(COCO)]  # once more
    (weights / PLACES[VOC]).write_bytes(b'another')  # whose numbers are not those of before
    with pytest.raises(UserError, match='^3 of 4 files'):
        tool(*data)
    assert list(record(tmp_path)) == [OTHER]


def test_what_is_missing_is_told_in_a_line(tool, data, tmp_path, capsys):
    assert 'nothing to evaluate on: give --imagenet DIR, --coco DIR or --voc DIR' in tool.error(capsys)
    assert tool.error(capsys, '--coco', tmp_path / 'no') == f'error: no folder {tmp_path}/no'
    assert tool.error(capsys, '--coco', tmp_path) == f'error: no folder {tmp_path}/val2014'
    error = Script(released, data[1], f'--output {tmp_path}/out').error(capsys, *data)
    assert error.startswith(f'error: {data[1]} holds no released file; their names are resnext50.pth.tar, ')
    assert error.endswith(', deeplab_dla60x_elastic_pascal_v3_original_epoch50.pth')
    for content in '{', '[1]', '{"x": 1}', json.dumps({IMAGENET: {'net': 'x'}}), '5':
        (tmp_path / 'out' / 'released.json').write_text(content)
        assert f'error: {tmp_path}/out/released.json is damaged or not of this tool' in tool.error(capsys, *data)


def test_the_released_files_are_of_nets_in_the_registries():
    assert len(released.RELEASED) == 10 + 8 + 6
    assert all(arch in released.TASKS[task] for task, arch in released.RELEASED.values())
    assert model_table.PUBLISHED.keys() <= {arch for task, arch in released.RELEASED.values() if task == 'imagenet'}
