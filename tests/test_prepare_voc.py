"""VOC's palette, and the augmented VOC set from small files as VOC and SBD store them."""

import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from data import prepare_voc
from data.palette import MAT_FILE, voc_palette, write_mat
from tests.conftest import Script
from utils.joint_transforms import CentredScene
from utils.voc import open_scenes

NAMES = {'train': ['a', 'b'], 'val': ['v', 'w']}
THEIRS = {'train': ['a', 's', 'v'], 'val': ['t', 'w']}  # SBD's, also images of VOC's own lists


def test_palette_is_vocs_and_the_committed_file_and_needs_no_scipy(tmp_path, monkeypatch):
    palette = voc_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 7: (128, 128, 128), 15: (192, 128, 128), 20: (0, 64, 128)}
    known[255] = 224, 224, 192
    assert {label: tuple(palette[label].tolist()) for label in known} == known
    assert len(np.unique(palette, axis=0)) == 256
    write_mat(tmp_path / 'new.mat')
    for path in MAT_FILE, tmp_path / 'new.mat':
        colormap = loadmat(path)['colormap']
        assert colormap.dtype == np.float64
        np.testing.assert_array_equal(colormap, palette / 255)
    monkeypatch.setitem(sys.modules, 'scipy', None)
    assert np.array_equal(runpy.run_path(str(MAT_FILE.with_name('palette.py')))['voc_palette'](), palette)


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
        (voc / 'ImageSets' / 'Segmentation' / f'{part}.txt').write_text('\n'.join(NAMES[part]) + '\n')
        (sbd / f'{part}.txt').write_text('\n'.join(THEIRS[part]) + '\n')
        for name in NAMES[part]:
            own = Image.fromarray(mask(255))
            own.putpalette(voc_palette().tobytes())
            own.save(voc / 'SegmentationClass' / f'{name}.png')
        for label, name in enumerate(THEIRS[part], 3):
            write_sbd(sbd / 'cls' / f'{name}.mat', mask(label))
    for name in 'abstvw':
        Image.new('RGB', (8, 6)).save(voc / 'JPEGImages' / f'{name}.jpg')
    return voc, sbd


@pytest.fixture
def prepare(folders):
    return Script(prepare_voc, folders[0], str(folders[1]))


def test_lists_and_masks_are_written_and_segment_reads_them(prepare, folders, capsys):
    prepare()
    assert 'train_aug.txt: 4 images, where the full sets have 10,582' in capsys.readouterr().out
    for part, fills in {'train_aug': {'a': 255, 'b': 255, 's': 4, 't': 3}, 'val': {'v': 255, 'w': 255}}.items():
        voc, scenes = folders[0], open_scenes(folders[0], f'{part}.txt', CentredScene(17))
        for (_, target), *paths, (name, fill) in zip(scenes, scenes.images, scenes.masks, fills.items(), strict=True):
            assert paths == [voc / 'JPEGImages' / f'{name}.jpg', voc / 'SegmentationClassAug' / f'{name}.png']
            assert target.labels[5:11, 4:12].tolist() == mask(fill).tolist()
            with Image.open(paths[1]) as picture:
                assert picture.mode == 'P'
                assert picture.getpalette()[:9] == voc_palette()[:3].ravel().tolist()


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
    assert re.search(told, prepare.error(capsys))
    assert sorted(folders[0].iterdir()) == before
