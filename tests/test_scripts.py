"""The scripts on small sets: printed lines, files, what is evaluated, and what a user did wrong told in one line."""

import os
import re
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import models
import segment as segment_script
from data.coco import open_part, squashed
from data.palette import voc_palette
from data.voc import CLASSES
from tests.conftest import SETS, Script, small_script, write_folder
from tests.pictures import SIZES, Oracle, write_json, write_voc
from tests.runs import LAST, LAST_OF_COCO, LAST_OF_VOC, MEASURED, PAIR, epochs
from tools import prediction_sheet
from utils import checkpoint, trainer
from utils import device as compute
from utils.errors import UserError
from utils.multilabel import NAMES
from utils.run import Run

COCO_VAL = 'annotations/instances_val2014.json'
MEAN_IOUS = 'Mean IoU', 'Mean IoU over the 21 classes present'


@pytest.fixture
def script(request, tiny, tmp_path):
    """The script of a name, on tmp_path/set and writing into tmp_path/run."""
    script = small_script(request.param, SETS.get(request.param, write_folder)(tmp_path / 'set'))
    script.shared += ['--output', str(tmp_path / 'run')]
    return script


def test_lines_log_and_checkpoint_of_classify_have_the_form_of_the_reference(undisturbed):
    _, folder, lines = undisturbed('classify')
    train = [re.fullmatch(rf'Epoch: \[(\d)\]\[(\d+)/(\d+)\]\tTime {PAIR}\tData {PAIR}\t{MEASURED}', x) for x in lines]
    assert [m.groups() for m in train if m] == [(e, i, '9') for e in '01' for i in '036']
    test = [re.fullmatch(rf'Test: \[(\d+)/(\d+)\]\tTime {PAIR}\t{MEASURED}', line) for line in lines]
    assert [m.groups() for m in test if m] == 2 * [('0', '5'), ('3', '5')]
    assert len([line for line in lines if re.fullmatch(r' \* Err@1 \d+\.\d{3} Err@5 \d+\.\d{3}', line)]) == 2
    assert len(lines) == 1 + 6 + 4 + 2
    start, *rest = epochs(folder)
    assert start['args']['lr'] == 0.05
    assert {'git', 'torch', 'device'} <= start.keys()
    assert [(record['epoch'], record['lr']) for record in rest] == [(0, 0.05), (1, pytest.approx(0.005))]
    assert all(set(record[part]) == {'loss', 'err1', 'err5'} for record in rest for part in ('train', 'val'))
    saved = torch.load(folder / LAST, weights_only=True)
    assert all(name.startswith('module.') for name in saved['state_dict'])
    assert saved['best_err1'] == min(record['val']['err1'] for record in rest)


def test_lines_and_log_of_multilabel_classify_have_the_form_of_the_reference(undisturbed):
    run, rate = undisturbed('multilabel_classify'), r'\d+\.\d{2} \(\d+\.\d{2}\)'
    measures = rf'Loss \d+\.\d{{4}} \(\d+\.\d{{4}}\)\tPrecision {rate}\tRecall {rate}'
    results = ' '.join(rf'{name} \d+\.\d\d' for name in NAMES)
    sizes = r'Recall small \d+\.\d\d medium \d+\.\d\d large \d+\.\d\d'
    for form, count in [
        (rf'Epoch: \[\d\]\[\d/6\]\tTime {PAIR}\tData {PAIR}\t{measures}\n{results}', 4),
        (rf'Test: \[\d/3\]\tTime {PAIR}\t{measures}\n{results}', 2),
        (rf' \* {results}\n   mAP \d+\.\d\d \(\d classes absent\) {sizes}', 2),
    ]:
        assert len(re.findall(f'^{form}$', '\n'.join(run.lines), re.M)) == count
    assert [row['class'] for row in epochs(run.folder)[-1]['val']['classes']] == ['ant', 'bee', 'cow']


def test_lines_of_segment_have_the_form_of_the_reference(undisturbed, segment, tmp_path, capsys):
    run = undisturbed('segment')
    assert ' 13 training images, 1 x 4 per update' in run.lines[0]
    form = r'epoch: (\d)\titer: (\d)/(\d)\tlr: (\d\.\d{6})\tloss: \d+\.\d{4} \(\d+\.\d{4}\)'
    found = [re.fullmatch(form, line).groups() for line in run.lines[1:]]
    rates = [f'{0.05 * (1 - i / 6) ** 0.9:.6f}' for i in (0, 2, 3, 5)]
    assert found == [(e, i, '3', lr) for (e, i), lr in zip(('11', '13', '21', '23'), rates, strict=True)]
    segment('--resume', run.folder / LAST_OF_VOC)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ['eval: 2/3', 'eval: 3/3']  # two of one size, then the other; every second and the last
    assert [line.split(':')[0] for line in lines[3:]] == [*(f'IoU {name}' for name in CLASSES), *MEAN_IOUS]
    assert sorted(path.name for path in (tmp_path / 'run' / 'val').iterdir()) == [f'val_{n}.png' for n in range(3)]


@pytest.mark.parametrize(
    'script, last, lines', [('classify', LAST, 1), ('multilabel_classify', LAST_OF_COCO, 2)], indirect=['script']
)
def test_evaluation_needs_val_only_and_repeats_what_was_printed(undisturbed, script, tmp_path, capsys, last, lines):
    run = undisturbed(script.script.__name__)
    for folder in (tmp_path / 'set').glob('train*'):
        shutil.rmtree(folder)
    script('--evaluate', '--resume', run.folder / last, '-b', 18)
    assert capsys.readouterr().out.splitlines()[-lines:] == run.lines[-lines:]
    assert not (tmp_path / 'run').exists()


def test_truth_fed_back_scores_100_and_is_saved_at_every_size_under_the_masks_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.segmenters, 'oracle', Oracle)
    voc = write_voc(tmp_path / 'devkit', val=SIZES) / 'VOC2012'
    for path in (voc / 'JPEGImages').iterdir():
        path.rename(path.with_name(f'photo_of_{path.name}'))
    replace(voc / 'list' / 'val.txt', 'JPEGImages/', 'JPEGImages/photo_of_')
    torch.save(Oracle().state_dict(), tmp_path / 'oracle.pth')
    segment = Script(segment_script, '--exp=x', f'--data {tmp_path}/devkit -a oracle --workers 0 --device cpu -b 4')
    segment('--resume', tmp_path / 'oracle.pth', '--output', tmp_path / 'run', '--overlay')
    expected = [f'{name}: 100.00' for name in (*(f'IoU {name}' for name in CLASSES), *MEAN_IOUS)]
    assert capsys.readouterr().out.splitlines()[-23:] == expected
    for number, (height, width) in enumerate(SIZES):
        truth = voc / 'SegmentationClassAug' / f'val_{number}.png'
        with Image.open(tmp_path / 'run' / 'val' / f'val_{number}.png') as saved, Image.open(truth) as wanted:
            assert (saved.mode, saved.size) == ('P', (width, height))
            assert saved.getpalette()[:63] == voc_palette()[:21].ravel().tolist()
            np.testing.assert_array_equal(np.asarray(saved), np.asarray(wanted))
        with Image.open(tmp_path / 'run' / 'overlays' / f'val_{number}.jpg') as overlay:
            assert overlay.size == (3 * width, height)


def test_files_of_segment_and_which_are_evaluated(segment, undrawn, tmp_path, capsys):
    segment('--train', '--epochs', 12)
    run = tmp_path / 'run'
    names = [f'deeplab_tiny_pascal_v3_mine_{end}.pth' for end in ('epoch10', 'epoch12', 'last')]
    assert sorted(path.name for path in run.glob('*.pth')) == names
    assert [record['epoch'] for record in epochs(run)[1:]] == list(range(12))
    found = checkpoint.read(run / names[0])
    assert (found.epoch, found.task, found.arch, found.classes) == (10, 'voc', 'tiny', CLASSES)
    segment('--epochs', 10, '--scales', '0.5,1', '--flip')
    segment('--epochs', 12)
    assert 'epoch11.pth' in segment.error(capsys, '--epochs', 11)
    for last, earlier, wanted in (2, 0, 10), (0, 1, 12):
        (run / names[last]).unlink()
        assert f'{names[earlier]} is of another run' in segment.error(capsys, '--train', '--epochs', wanted)
    (run / names[1]).rename(run / names[0])
    segment('--train', '--epochs', 2)  # which does not write that of epoch 10


def test_frozen_batch_norms_stay_as_they_are(segment, undrawn, tmp_path):
    segment('--train', '--freeze_bn', '--batch-size', 1)
    torch.manual_seed(0)
    initial = models.build_segmenter('tiny').state_dict()
    after = checkpoint.read(tmp_path / 'run' / LAST_OF_VOC).state_dict
    unchanged = {name for name in initial if torch.equal(initial[name], after[name])}
    assert unchanged == {name for name in initial if re.search(r'\bbn', name)} | {'base.fc.weight', 'base.fc.bias'}


@pytest.mark.parametrize('name', models.segmenters)
def test_parameter_groups(name):
    with torch.device('meta'):
        model = models.build_segmenter(name)
    dla = name.startswith('dla')
    places = [['conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4'], ['aspp']]
    groups = segment_script.parameter_groups(model, 10)
    for group, own, scale in zip(groups, [['base'], ['dla_up', 'fc']] if dla else places, (1, 10), strict=True):
        expected = [value for key, value in model.named_parameters() if key.partition('.')[0] in own]
        assert [id(value) for value in group['params']] == [id(value) for value in expected]
        assert (group['weight_decay'], group['lr_scale']) == (1e-4 if dla else 5e-4, scale)


def test_docker_classify_as_one_process_uses_one_gpu_and_classify_all(folder, tiny, monkeypatch):
    """With GPUs that are only counted: what they would be used for is seen before the net is placed."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(compute, 'set_up_gpu', lambda device, tf32, search: None)
    cut = Mock(side_effect=UserError('seen'))
    monkeypatch.setattr(trainer, 'micro_batches', cut)
    for name in 'classify', 'docker_classify':
        with pytest.raises(UserError, match='seen'):
            small_script(name, folder)('-g', 4, '--device', 'auto')
    assert [call.args for call in cut.mock_calls] == [(8, 4, 4), (32, 4, 1)]  # of which on one GPU


def test_sheet_of_predictions(undisturbed, tiny, tmp_path, capsys, monkeypatch):
    coco, net = SETS['multilabel_classify'](tmp_path / 'coco'), undisturbed('multilabel_classify').folder / LAST_OF_COCO
    sheet = Script(prediction_sheet, net, f'{coco} --image-size 32 --images 7')
    sheet(tmp_path / 'sheet.png')
    with Image.open(tmp_path / 'sheet.png') as picture:
        assert picture.size[0] > 500
    data = open_part(coco, 'val', '2014', squashed(32))
    args = prediction_sheet.make_parser().parse_args([*sheet.shared, 'sheet.png'])
    few, everything = (prediction_sheet.predict(args, data, places) for places in (np.array([0, 4]), np.arange(9)))
    np.testing.assert_allclose(few, everything[[0, 4]], rtol=1e-5)
    data.classes[0] = '$_$'  # no formula
    figure = prediction_sheet.draw(data, np.arange(9), np.ones((9, 3)), columns=3)
    figure.draw_without_rendering()
    first, next_row, last = (figure.axes[place] for place in (0, 3, 6))
    assert min(text.get_window_extent().y0 for text in first.texts) > next_row.get_window_extent().y1
    assert min(text.get_window_extent().y0 for text in last.texts) > 0 and len(last.texts) == 3
    monkeypatch.setattr(prediction_sheet, 'predict', None)  # told before
    (tmp_path / 'a.png').mkdir()
    assert sheet.error(capsys, tmp_path / 'a.png') == f'error: cannot write {tmp_path}/a.png: it is a folder'


# What a user did wrong


@pytest.mark.parametrize(
    'script, arguments, told',
    [
        ('classify', '--color', 'unrecognized arguments: --color'),
        ('classify', '--amp fp16', '--amp fp16 needs a GPU'),
        ('classify', '--amp tf32', '--amp tf32 needs a GPU of NVIDIA'),
        ('classify', '--evaluate', '--evaluate needs --resume'),
        ('classify', '--resume no/x', 'no checkpoint at no/x'),
        ('classify', f'--resume {300 * "x"}', 'File name too long'),  # as what may not be looked at, which root may
        ('classify', '-b 9', '--batch-size 9 cannot be cut into 2 equal micro-batches'),
        ('classify', '-b 2 -a dla60x', 'dla60x cannot train on single images of 32 pixels: give a larger --image-size'),
        ('docker_classify', '-b 20', 'fewer than one batch (--batch-size 20 on --num-gpus 2)'),
        ('multilabel_classify', '--year 2017', 'no folder'),
        ('segment', '', 'deeplab_tiny_pascal_v3_mine_epoch2.pth'),
        ('segment', '--train --batch-size 1', '--batch-size 1: tiny trains on 2 images per device'),
        ('segment', '--gpu 7', '--device cuda:7: no such device here'),
        ('segment', '--exp=my/exp', "argument --exp: 'my/exp' cannot be part of the name of a file"),
    ],
    indirect=['script'],
)
def test_wrong_arguments(script, capsys, arguments, told):
    assert told in script.error(capsys, *arguments.split())


def replace(path, old, new):
    """In the text of a file."""
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    'script, spoil, told',
    [
        ('classify', lambda at: (at / 'train').rename(at / 'x'), 'set/train'),
        ('classify', lambda at: [path.unlink() for path in (at / 'val/bee').iterdir()], 'bee'),
        ('classify', lambda at: (at / 'val/bee').rename(at / 'val/wasp'), 'the same classes; only one has bee, wasp'),
        ('classify', lambda at: os.truncate(at / 'train/cat/2.png', 999), 'cannot read image {}/set/train/cat/2.png'),
        ('multilabel_classify', lambda at: (at / 'train2014/train_3.png').unlink(), 'file are not there: train_3.png'),
        ('multilabel_classify', lambda at: replace(at / COCO_VAL, 'cow', 'dog'), 'only one has cow, dog'),
        ('segment', lambda at: (at / 'VOC2012/JPEGImages/val_1.png').write_bytes(b'x'), 'cannot read image'),
        ('segment', lambda at: write_json(at.parent / 'run/val', {}), 'cannot write {}/run/val/val_0.png: File exists'),
    ],
    indirect=['script'],
)
def test_spoiled_set_is_told_and_nothing_half_written_is_left(undisturbed, script, tmp_path, capsys, spoil, told):
    spoil(tmp_path / 'set')
    voc = script.script is segment_script
    ways = [['--resume', undisturbed('segment').folder / LAST_OF_VOC, '-p', 1]] if voc else [['-j', 0], ['-j', 2]]
    for way in ways:
        assert told.format(tmp_path) in script.error(capsys, *way)
    assert not [*tmp_path.glob('run/*.tar'), *tmp_path.glob('run/*/*')]


def test_of_a_test_that_is_not_finite_no_numbers_are_reported(undisturbed, classify, tmp_path, capsys):
    saved = torch.load(undisturbed('classify').folder / LAST, weights_only=True)
    saved['state_dict']['module.fc.weight'].fill_(3e38)
    torch.save(saved, tmp_path / 'large')
    with pytest.raises(UserError, match='large gives a loss that is not finite'):
        classify('--evaluate', '--resume', tmp_path / 'large')
    out = capsys.readouterr().out
    assert '=> the loss of this test is not finite: its numbers mean nothing' in out and ' * Err@1' not in out


def test_what_is_not_finite_is_told_and_not_saved(undisturbed, classify, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(undisturbed('classify').folder, tmp_path / 'copied')
    before = (folder / LAST).read_bytes()
    arguments = '--output', folder, '--auto-resume', '--epochs', 3, '--lr', 1e30, '-p', 100
    told = rf'not finite at epoch 2, step [2-4]; last checkpoint: {folder / LAST}'
    assert re.search(told, classify.error(capsys, *arguments))
    monkeypatch.setattr(Run, 'check_finite', lambda run: None)  # the losses are
    assert 'is not finite: not saved' in classify.error(capsys, *arguments)
    assert (folder / LAST).read_bytes() == before
