"""segment.py end to end: truth fed back, files and lines, exact resume, transfer, errors of a user."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import one_hot

import models
import segment as script
from data.palette import voc_palette
from tests.conftest import Script, stop_at
from tests.pictures import SIZES, STEP, write_voc
from tests.runs import LAST_OF_VOC as LAST
from tests.runs import assert_same, content, epochs
from utils import checkpoint
from utils.data import MEAN, STD
from utils.interrupt import Stopped
from utils.voc import CLASSES


class Oracle(nn.Module):
    """Reads the labels from the brightness of the pictures of tests/pictures.py."""

    backbone, heads, untrained, smallest_batch = (), ('head',), (), 1

    def __init__(self, num_classes=21, checkpoint_activations=False):
        super().__init__()
        self.head = nn.Linear(1, num_classes)

    def forward(self, x):
        grey = (x[:, 0] * STD[0] + MEAN[0]) * 255
        return one_hot((grey / STEP).round().long().clamp(0, 20), 21).permute(0, 3, 1, 2).float()


def test_truth_fed_back_scores_100_and_is_saved_at_every_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.segmenters, 'oracle', Oracle)
    write_voc(tmp_path / 'devkit', val=SIZES)
    torch.save(Oracle().state_dict(), tmp_path / 'oracle.pth')
    segment = Script(script, '--exp=x', f'--data {tmp_path}/devkit -a oracle --workers 0 --device cpu -b 4')
    segment('--resume', tmp_path / 'oracle.pth', '--output', tmp_path, '--overlay')
    lines = capsys.readouterr().out.splitlines()
    assert lines[-23:] == [
        *(f'IoU {name}: 100.00' for name in CLASSES),
        'Mean IoU: 100.00',
        'Mean IoU over the 21 classes present: 100.00',
    ]
    for number, (height, width) in enumerate(SIZES):
        truth = tmp_path / 'devkit' / 'VOC2012' / 'SegmentationClassAug' / f'val_{number}.png'
        with Image.open(tmp_path / 'val' / f'val_{number}.png') as saved, Image.open(truth) as wanted:
            assert (saved.mode, saved.size) == ('P', (width, height))
            assert saved.getpalette()[:63] == voc_palette()[:21].ravel().tolist()
            np.testing.assert_array_equal(np.asarray(saved), np.asarray(wanted))
        with Image.open(tmp_path / 'overlays' / f'val_{number}.jpg') as overlay:
            assert overlay.size == (3 * width, height)


def test_printed_lines_have_the_form_of_the_reference(segment, tmp_path, capsys):
    segment('--train')
    lines = capsys.readouterr().out.splitlines()
    assert ' 13 training images, 1 x 4 per update' in lines[0]
    form = r'epoch: (\d)\titer: (\d)/(\d)\tlr: (\d\.\d{6})\tloss: \d+\.\d{4} \(\d+\.\d{4}\)'
    found = [re.fullmatch(form, line).groups() for line in lines[1:]]
    rates = [f'{0.05 * (1 - i / 6) ** 0.9:.6f}' for i in (0, 2, 3, 5)]
    assert found == [(e, i, '3', lr) for (e, i), lr in zip(('11', '13', '21', '23'), rates, strict=True)]
    segment()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ['eval: 2/3', 'eval: 3/3']  # two of one size, then the other; every second and the last
    assert [line.split(':')[0] for line in lines[3:]] == [*(f'IoU {name}' for name in CLASSES), 'Mean IoU', ANY_MEAN]
    assert sorted(path.name for path in (tmp_path / 'run' / 'val').iterdir()) == [f'val_{n}.png' for n in range(3)]


def test_predictions_are_named_after_the_masks(segment, devkit, tmp_path):
    listed = devkit / 'VOC2012' / 'list' / 'val.txt'
    for path in (devkit / 'VOC2012' / 'JPEGImages').glob('val_*'):
        path.rename(path.with_name(f'photo_of_{path.name}'))
    listed.write_text(listed.read_text().replace('JPEGImages/', 'JPEGImages/photo_of_'))
    torch.save(models.build_segmenter('tiny').state_dict(), tmp_path / 'net.pth')
    segment('--resume', tmp_path / 'net.pth', '--overlay')
    for folder, suffix in ('val', 'png'), ('overlays', 'jpg'):
        names = sorted(path.name for path in (tmp_path / 'run' / folder).iterdir())
        assert names == [f'val_{number}.{suffix}' for number in range(3)]


ANY_MEAN = 'Mean IoU over the 21 classes present'


def test_files_and_what_is_evaluated(segment, tmp_path, capsys):
    assert 'deeplab_tiny_pascal_v3_mine_epoch2.pth' in segment.error(capsys)
    segment('--train', '--epochs', 12)
    run = tmp_path / 'run'
    names = [f'deeplab_tiny_pascal_v3_mine_{end}.pth' for end in ('epoch10', 'epoch12', 'last')]
    assert sorted(path.name for path in run.glob('*.pth')) == names
    assert (run / 'curves.png').exists()
    assert [record['epoch'] for record in epochs(run)[1:]] == list(range(12))
    found = checkpoint.read(run / names[0])
    assert (found.epoch, found.task, found.arch, found.classes) == (10, 'voc', 'tiny', CLASSES)
    for epoch in 10, 12:
        segment('--epochs', epoch)
    assert 'epoch11.pth' in segment.error(capsys, '--epochs', 11)
    (run / names[2]).unlink()
    assert f'{names[0]} is of another run' in segment.error(capsys, '--train', '--epochs', 10)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('call', [7, 20])
def test_stopped_and_resumed_run_is_bit_identical(segment, tmp_path, monkeypatch, workers, call):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    segment('--train', '--workers', workers, '--output', whole)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, call if workers == 0 else call // 2)
        segment('--train', '--workers', workers, '--output', parts)
    segment('--train', '--workers', workers, '--output', parts, '--auto-resume')
    assert_same(content(parts, LAST), content(whole, LAST))
    assert epochs(parts)[-1] == epochs(whole)[-1]


def test_head_learns_last_mult_times_as_fast(segment, tmp_path):
    for factor in 0, 1:
        segment('--train', '--epochs', 1, '--last-mult', factor, '--output', tmp_path / str(factor))
    fresh = checkpoint.read(tmp_path / '0' / LAST).state_dict
    moved = checkpoint.read(tmp_path / '1' / LAST).state_dict
    torch.manual_seed(0)
    initial = models.build_segmenter('tiny').state_dict()
    assert torch.equal(fresh['score.weight'], initial['score.weight'])
    assert not torch.equal(fresh['base.conv1.weight'], initial['base.conv1.weight'])
    assert not torch.equal(moved['score.weight'], initial['score.weight'])


def test_frozen_batch_norms_stay_as_they_are(segment, tmp_path):
    segment('--train', '--freeze_bn', '--batch-size', 1)
    torch.manual_seed(0)
    initial = models.build_segmenter('tiny').state_dict()
    after = checkpoint.read(tmp_path / 'run' / LAST).state_dict
    norms = {name for name in initial if re.search(r'\bbn', name)}
    assert len(norms) == 5 * 5
    unchanged = {name for name in initial if torch.equal(initial[name], after[name])}
    assert unchanged == norms | {'base.fc.weight', 'base.fc.bias'}


@pytest.mark.parametrize('name', models.segmenters)
def test_parameter_groups(name):
    with torch.device('meta'):
        model = models.build_segmenter(name)
    backbone, head = script.parameter_groups(model, 10)
    places = {parameter: key for key, parameter in model.named_parameters()}
    parts = [[places[parameter].partition('.')[0] for parameter in group['params']] for group in (backbone, head)]
    of_dla = name.startswith('dla')
    expected = [['conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4'], ['aspp']]
    if of_dla:
        expected = [['base'], ['dla_up', 'fc']]
    assert [list(dict.fromkeys(part)) for part in parts] == expected
    for group in backbone, head:
        names = [places[parameter] for parameter in group['params']]
        assert names == [key for key in places.values() if key.partition('.')[0] in expected[group is head]]
        assert group['weight_decay'] == (1e-4 if of_dla else 5e-4)
    assert (backbone['lr_scale'], head['lr_scale']) == (1, 10)
    assert ('base.fc.weight' in places.values()) == of_dla
    assert 'up.weight' not in [places[parameter] for parameter in (*backbone['params'], *head['params'])]


def test_run_starts_from_our_classifier_and_names_what_is_fresh(segment, classify, tmp_path, capsys):
    classify('--output', tmp_path / 'imagenet', '--epochs', 1)
    source = tmp_path / 'imagenet' / 'tiny_checkpoint.pth.tar'
    segment('--train', '--resume', source, '--base-lr', 0)
    assert 'left out, as initialised: score, base.fc\n' in capsys.readouterr().out
    ours, theirs = (checkpoint.read(path).state_dict for path in (tmp_path / 'run' / LAST, source))
    assert torch.equal(ours['base.conv1.weight'], theirs['conv1.weight'])
    assert 'cannot be evaluated here: its task is imagenet, not voc' in segment.error(capsys, '--resume', source)


def spoil_mask(devkit, number, picture):
    picture.save(devkit / 'VOC2012' / 'SegmentationClassAug' / f'val_{number}.png')


@pytest.mark.parametrize(
    'spoil, told',
    [
        (lambda d: spoil_mask(d, 1, Image.new('L', (9, 9))), 'val_1.png is 9 x 9 pixels, its image 33 x 50'),
        (lambda d: spoil_mask(d, 1, Image.new('L', (33, 50), 77)), 'val_1.png: label 77'),
        (lambda d: spoil_mask(d, 1, Image.new('RGB', (33, 50))), 'val_1.png: a mask is a palette or grey picture'),
        (lambda d: (d / 'VOC2012' / 'JPEGImages' / 'val_1.png').unlink(), 'names 1 files that are not there'),
        (lambda d: (d / 'VOC2012' / 'JPEGImages' / 'val_1.png').write_bytes(b'x'), 'cannot read image'),
        (lambda d: (d / 'VOC2012' / 'list' / 'val.txt').write_text(''), 'val.txt: empty'),
        (lambda d: (d / 'VOC2012' / 'list' / 'val.txt').unlink(), 'no list'),
    ],
)
def test_what_is_wrong_is_told_and_nothing_half_written_is_left(segment, devkit, tmp_path, capsys, spoil, told):
    torch.save(models.build_segmenter('tiny').state_dict(), tmp_path / 'net.pth')
    spoil(devkit)
    assert told in segment.error(capsys, '--resume', tmp_path / 'net.pth', '-p', 1)
    assert not (tmp_path / 'run').exists() or not list((tmp_path / 'run').iterdir())


def test_wrong_arguments(segment, capsys):
    assert '--batch-size 1: tiny trains on 2 images per device' in segment.error(capsys, '--train', '--batch-size', 1)
    assert 'invalid scales value' in segment.error(capsys, '--scales', '1,0')
    assert 'not finite' in segment.error(capsys, '--train', '--base_lr', 1e30, '--last_mult', 1e8)
    assert '--device cuda:7: no such device here' in segment.error(capsys, '--gpu', 7)
    for name in 'my/exp', '':
        assert 'argument --exp: invalid part_of_a_name value' in segment.error(capsys, f'--exp={name}')


def test_file_in_the_way_of_the_predictions_is_told_before_they_are_made(segment, tmp_path, capsys):
    torch.save(models.build_segmenter('tiny').state_dict(), tmp_path / 'net.pth')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'val').touch()
    error = segment.error(capsys, '--resume', tmp_path / 'net.pth')
    assert error == f'error: cannot write to {tmp_path}/run/val: it is no folder, or one that is read-only'


def test_identity_of_another_net_is_named(segment, tmp_path, capsys):
    identity = {'arch': 'resnext50', 'task': 'voc', 'classes': CLASSES}
    torch.save({**identity, 'state_dict': models.build_segmenter('tiny').state_dict()}, tmp_path / 'other.pth')
    assert 'a checkpoint of resnext50, not of --arch tiny' in segment.error(capsys, '--resume', tmp_path / 'other.pth')


@pytest.mark.parametrize('name', ['resnext50_elastic', 'dla60x_elastic'])
def test_nets_of_the_registry_train_and_are_evaluated(devkit, tmp_path, name, capsys):
    run = f'--data {devkit} --output {tmp_path}/run --epochs 1 --workers 0 --device cpu'
    segment = Script(script, '--exp=x', f'{run} -a {name} --crop-size 33 -b 7')
    segment('--train')
    segment('--scales', '0.5,1', '--flip', '--overlay')
    assert 'Mean IoU over' in capsys.readouterr().out
    assert len(list((tmp_path / 'run' / 'overlays').iterdir())) == 3
