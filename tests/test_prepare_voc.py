"""The augmented VOC set from small files as VOC and SBD store them."""

import re

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data import prepare_voc
from data.palette import voc_palette
from tests.conftest import Script
from utils.joint_transforms import CentredScene
from utils.voc import open_scenes

OWN = {'train': ['a', 'b'], 'val': ['v', 'w']}
SBD = {'train': ['a', 's', 'v'], 'val': ['t', 'w']}  # also images of VOC's own lists


def mask(fill, size=(6, 8)):
    labels = np.zeros(size, np.uint8)
    labels[1:4, 2:5] = fill
    return labels


def write_sbd(path, labels):
    """As SBD does: a 1 x 1 struct GTcls with boundaries as sparse cells, the segmentation and the classes present."""
    boundaries = np.empty((20, 1), object)
    boundaries[:, 0] = [np.zeros(labels.shape, np.uint8)] * 20
    present = np.unique(labels[labels > 0])[:, None]
    savemat(path, {'GTcls': {'Boundaries': boundaries, 'Segmentation': labels, 'CategoriesPresent': present}})


@pytest.fixture
def folders(tmp_path):
    voc, sbd = tmp_path / 'VOC2012', tmp_path / 'sbd'
    for folder in (voc / 'JPEGImages', voc / 'SegmentationClass', voc / 'ImageSets' / 'Segmentation', sbd / 'cls'):
        folder.mkdir(parents=True)
    for part in 'train', 'val':
        (voc / 'ImageSets' / 'Segmentation' / f'{part}.txt').write_text('\n'.join(OWN[part]) + '\n')
        (sbd / f'{part}.txt').write_text('\n'.join(SBD[part]) + '\n')
        for name in OWN[part]:
            own = Image.fromarray(mask(255))
            own.putpalette(voc_palette().tobytes())
            own.save(voc / 'SegmentationClass' / f'{name}.png')
        for label, name in enumerate(SBD[part], 3):
            write_sbd(sbd / 'cls' / f'{name}.mat', mask(label))
    for name in 'abstvw':
        Image.new('RGB', (8, 6)).save(voc / 'JPEGImages' / f'{name}.jpg')
    return voc, sbd


@pytest.fixture
def prepare(folders):
    return Script(prepare_voc, folders[0], str(folders[1]))


def test_lists_and_masks(prepare, folders, capsys):
    prepare()
    voc, _ = folders
    lists = {part: (voc / 'list' / f'{part}.txt').read_text().splitlines() for part in ('train_aug', 'val')}
    line = '/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png'
    assert lists == {'train_aug': [line.format(name) for name in 'abst'], 'val': [line.format(name) for name in 'vw']}
    expected = {'a': 255, 'b': 255, 's': 4, 't': 3, 'v': 255, 'w': 255}
    written = {path.stem: path for path in (voc / 'SegmentationClassAug').iterdir()}
    assert written.keys() == expected.keys()
    for name, fill in expected.items():
        with Image.open(written[name]) as picture:
            assert picture.mode == 'P'
            assert picture.getpalette()[:9] == voc_palette()[:3].ravel().tolist()
            np.testing.assert_array_equal(np.asarray(picture), mask(fill))
    assert 'train_aug.txt: 4 images, where the full sets have 10,582' in capsys.readouterr().out


def test_segment_reads_what_was_written(prepare, folders):
    prepare()
    scenes = open_scenes(folders[0], 'train_aug.txt', CentredScene(17))
    image, target = scenes[3]
    assert (image.shape, target.labels.shape) == ((4, 17, 17), (17, 17))
    assert target.labels.unique().tolist() == [0, 3, 255]


@pytest.mark.parametrize(
    'spoil, told',
    [
        (lambda voc, sbd: (sbd / 'cls' / 's.mat').unlink(), 'no mask of s, neither in VOC nor .*s.mat'),
        (lambda voc, sbd: (sbd / 'cls' / 's.mat').write_bytes(b'x' * 500), 's.mat holds no GTcls.Segmentation'),
        (lambda voc, sbd: savemat(sbd / 'cls' / 's.mat', {'other': 1}), 's.mat holds no GTcls.Segmentation'),
        (lambda voc, sbd: write_sbd(sbd / 'cls' / 's.mat', mask(3, (6, 9))), r's.mat is of \(6, 9\) pixels, its image'),
        (lambda voc, sbd: write_sbd(sbd / 'cls' / 's.mat', mask(21)), 's.mat: labels must be H x W, from 0 to 20'),
        (lambda voc, sbd: (voc / 'JPEGImages' / 't.jpg').unlink(), 'JPEGImages lacks 1 images: t.jpg'),
        (lambda voc, sbd: (sbd / 'val.txt').unlink(), 'no list .*val.txt'),
        (lambda voc, sbd: (sbd / 'val.txt').write_text('\n'), 'val.txt is empty'),
        (lambda voc, sbd: (voc / 'list').mkdir(), 'list exists already'),
    ],
)
def test_errors_leave_nothing_behind(prepare, folders, capsys, spoil, told):
    spoil(*folders)
    before = sorted(folders[0].iterdir())
    error = prepare.error(capsys)
    assert re.search(told, error), error
    assert sorted(folders[0].iterdir()) == before
