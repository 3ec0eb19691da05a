"""segment.py end to end: truth fed back, files and printed lines, what is trained, errors of a user."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import models
import segment as script
from data.palette import voc_palette
from data.voc import CLASSES
from tests.conftest import Script
from tests.pictures import SIZES, Oracle, write_json, write_voc
from tests.runs import LAST_OF_VOC as LAST
from tests.runs import epochs
from utils import checkpoint


def test_truth_fed_back_scores_100_and_is_saved_at_every_size_under_the_masks_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.segmenters, 'oracle', Oracle)
    voc = write_voc(tmp_path / 'devkit', val=SIZES) / 'VOC2012'
    for path in (voc / 'JPEGImages').iterdir():
        path.rename(path.with_name(f'photo_of_{path.name}'))
    listed = voc / 'list' / 'val.txt'
    listed.write_text(listed.read_text().replace('JPEGImages/', 'JPEGImages/photo_of_'))
    torch.save(Oracle().state_dict(), tmp_path / 'oracle.pth')
    segment = Script(script, '--exp=x', f'--data {tmp_path}/devkit -a oracle --workers 0 --device cpu -b 4')
    segment('--resume', tmp_path / 'oracle.pth', '--output', tmp_path / 'run', '--overlay')
    means = 'Mean IoU: 100.00', 'Mean IoU over the 21 classes present: 100.00'
    assert capsys.readouterr().out.splitlines()[-23:] == [*(f'IoU {name}: 100.00' for name in CLASSES), *means]
    for number, (height, width) in enumerate(SIZES):
        truth = voc / 'SegmentationClassAug' / f'val_{number}.png'
        with Image.open(tmp_path / 'run' / 'val' / f'val_{number}.png') as saved, Image.open(truth) as wanted:
            assert (saved.mode, saved.size) == ('P', (width, height))
            assert saved.getpalette()[:63] == voc_palette()[:21].ravel().tolist()
            np.testing.assert_array_equal(np.asarray(saved), np.asarray(wanted))
        with Image.open(tmp_path / 'run' / 'overlays' / f'val_{number}.jpg') as overlay:
            assert overlay.size == (3 * width, height)


def test_printed_lines_have_the_form_of_the_reference(undisturbed, segment, tmp_path, capsys):
    run = undisturbed('segment')
    assert ' 13 training images, 1 x 4 per update' in run.lines[0]
    form = r'epoch: (\d)\titer: (\d)/(\d)\tlr: (\d\.\d{6})\tloss: \d+\.\d{4} \(\d+\.\d{4}\)'
    found = [re.fullmatch(form, line).groups() for line in run.lines[1:]]
    rates = [f'{0.05 * (1 - i / 6) ** 0.9:.6f}' for i in (0, 2, 3, 5)]
    assert found == [(e, i, '3', lr) for (e, i), lr in zip(('11', '13', '21', '23'), rates, strict=True)]
    segment('--resume', run.folder / LAST)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ['eval: 2/3', 'eval: 3/3']  # two of one size, then the other; every second and the last
    means = 'Mean IoU', 'Mean IoU over the 21 classes present'
    assert [line.split(':')[0] for line in lines[3:]] == [*(f'IoU {name}' for name in CLASSES), *means]
    assert sorted(path.name for path in (tmp_path / 'run' / 'val').iterdir()) == [f'val_{n}.png' for n in range(3)]


def test_files_and_what_is_evaluated(segment, undrawn, tmp_path, capsys):
    assert 'deeplab_tiny_pascal_v3_mine_epoch2.pth' in segment.error(capsys)
    segment('--train', '--epochs', 12)
    run = tmp_path / 'run'
    names = [f'deeplab_tiny_pascal_v3_mine_{end}.pth' for end in ('epoch10', 'epoch12', 'last')]
    assert sorted(path.name for path in run.glob('*.pth')) == names
    assert [record['epoch'] for record in epochs(run)[1:]] == list(range(12))
    found = checkpoint.read(run / names[0])
    assert (found.epoch, found.task, found.arch, found.classes) == (10, 'voc', 'tiny', CLASSES)
    for epoch in 10, 12:
        segment('--epochs', epoch)
    assert 'epoch11.pth' in segment.error(capsys, '--epochs', 11)
    (run / names[2]).unlink()
    assert f'{names[0]} is of another run' in segment.error(capsys, '--train', '--epochs', 10)


@pytest.mark.usefixtures('undrawn')
def test_frozen_batch_norms_stay_as_they_are(segment, tmp_path):
    segment('--train', '--freeze_bn', '--batch-size', 1)
    torch.manual_seed(0)
    initial = models.build_segmenter('tiny').state_dict()
    after = checkpoint.read(tmp_path / 'run' / LAST).state_dict
    unchanged = {name for name in initial if torch.equal(initial[name], after[name])}
    assert unchanged == {name for name in initial if re.search(r'\bbn', name)} | {'base.fc.weight', 'base.fc.bias'}


@pytest.mark.parametrize('name', models.segmenters)
def test_parameter_groups(name):
    with torch.device('meta'):
        model = models.build_segmenter(name)
    dla = name.startswith('dla')
    places = [['conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4'], ['aspp']]
    groups = script.parameter_groups(model, 10)
    for group, own, scale in zip(groups, [['base'], ['dla_up', 'fc']] if dla else places, (1, 10), strict=True):
        expected = [value for key, value in model.named_parameters() if key.partition('.')[0] in own]
        assert [id(value) for value in group['params']] == [id(value) for value in expected]
        assert (group['weight_decay'], group['lr_scale']) == (1e-4 if dla else 5e-4, scale)


@pytest.mark.parametrize(
    'spoil, told',
    [
        (lambda voc: Image.new('L', (33, 50), 77).save(voc / 'SegmentationClassAug' / 'val_1.png'), 'label 77'),
        (lambda voc: (voc / 'JPEGImages' / 'val_1.png').write_bytes(b'x'), 'cannot read image'),
        (lambda voc: (voc / 'list' / 'val.txt').unlink(), 'no list'),
        (lambda voc: write_json(voc.parents[1] / 'run' / 'val', {}), 'cannot write {}/run/val/val_0.png: '),
    ],
)
def test_what_is_wrong_is_told_and_nothing_half_written_is_left(
    undisturbed, segment, devkit, tmp_path, capsys, spoil, told
):
    spoil(devkit / 'VOC2012')
    assert told.format(tmp_path) in segment.error(capsys, '--resume', undisturbed('segment').folder / LAST, '-p', 1)
    assert not list(tmp_path.glob('run/*/*'))


@pytest.mark.parametrize(
    'arguments, told',
    [
        ('--train --batch-size 1', '--batch-size 1: tiny trains on 2 images per device'),
        ('--scales 1,0', 'invalid scales value'),
        ('--train --base_lr 1e30 --last_mult 1e8', 'not finite'),
        ('--gpu 7', '--device cuda:7: no such device here'),
        ('--exp=my/exp', 'argument --exp: invalid part_of_a_name value'),
        ('--exp=', 'argument --exp: invalid part_of_a_name value'),
    ],
)
def test_wrong_arguments(segment, capsys, arguments, told):
    assert told in segment.error(capsys, *arguments.split())


@pytest.mark.parametrize('name', ['dla60x_elastic', pytest.param('resnext50_elastic', marks=pytest.mark.slow)])
def test_nets_of_the_registry_train_and_are_evaluated(undrawn, tmp_path, name, capsys):
    devkit = write_voc(tmp_path / 'devkit', train_aug=[(40, 48)] * 2, val=[(30, 40), (50, 33)])
    run = f'--data {devkit} --output {tmp_path}/run --epochs 1 --workers 0 --device cpu'
    segment = Script(script, '--exp=x', f'{run} -a {name} --crop-size 33 -b 2')
    segment('--train')
    segment('--scales', '0.5,1', '--flip', '--overlay')
    assert 'Mean IoU over' in capsys.readouterr().out
    assert len(list((tmp_path / 'run' / 'overlays').iterdir())) == 2
