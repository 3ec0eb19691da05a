"""The scripts that write data sets: the sample set's layouts, VOC's augmented set, Fashion-MNIST's photos."""

import json
import os
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.io import loadmat, savemat
from torchvision.datasets import ImageFolder

from data import fashion_mnist, prepare_voc, sample
from data.layouts import polygon_area
from data.palette import MAT_FILE, mask_image, voc_palette, write_mat
from data.scenes import CLASS_NAMES, IGNORED, SCENE, render_scene
from data.voc import open_voc
from data.voc_transforms import PadToSize
from tests.conftest import Script
from tests.pictures import write_fashion

SCENES = {'train': 12, 'val': 6}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A set of 12 + 6 scenes, written by this process."""
    folder = tmp_path_factory.mktemp('sample')
    sample.write_sample(folder, 0, SCENES, workers=1)
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_two_workers_write_the_same_bytes_and_a_second_call_writes_nothing(made, tmp_path, capsys):
    out = tmp_path / 'deep' / 'out'
    script = Script(sample, out, '--train 12 --val 6 -j 2')
    script()
    written = contents(out)
    settings = json.loads(written.pop(Path('sample.json')))
    assert (settings['seed'], settings['train'], settings['val']) == (0, 12, 6)
    assert written == contents(made)
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    script()
    assert 'already' in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert [path.name for path in out.parent.iterdir()] == ['out']


def test_a_frame_holds_its_object_alone():
    scene = render_scene(np.random.default_rng(3), (8, 6, 5))
    for thing in scene.things:
        left, top, right, bottom = thing.frame
        assert ((left, top) <= thing.polygon).all() and (thing.polygon <= (right, bottom)).all()
        assert set(np.unique(scene.mask[top:bottom, left:right])) == {0, thing.label, IGNORED}


def test_seeds_and_parts_share_no_scene_and_longer_sets_begin_with_shorter_ones(made, tmp_path):
    sample.write_sample(tmp_path, 1, {'train': 4, 'val': 4}, workers=1)
    pictures = [path.read_bytes() for folder in (made, tmp_path) for path in folder.glob('coco/*2014/*.jpg')]
    assert len(set(pictures)) == len(pictures) == 18 + 8
    assert sample.plan(0, 'val', 30)[:7] == sample.plan(0, 'val', 7)
    assert sample.plan(0, 'val', 30) != sample.plan(0, 'train', 30)


def assert_drawn(annotation, decoded, mask):
    """A polygon within the scene, with its own box and area, around what the mask shows of its category."""
    points, shown = np.reshape(annotation['segmentation'], (-1, 2)), mask[decoded]
    assert (points >= 0).all() and (points <= SCENE).all()
    assert annotation['bbox'] == pytest.approx([*points.min(0), *np.ptp(points, 0)], abs=0.011)
    assert annotation['area'] == pytest.approx(polygon_area(points), abs=0.01)
    assert decoded.sum() == pytest.approx(annotation['area'], rel=0.04, abs=12)
    inside, around = (shown == annotation['category_id']).sum(), (shown == IGNORED).sum()
    assert inside + around >= decoded.sum() - 1  # the pixel of a tip: COCO rounds corners, we do not
    assert inside > around / 2


@pytest.mark.parametrize('part', SCENES)
def test_the_layouts_show_the_same_objects(made, part):
    index, folder = COCO(made / f'coco/annotations/instances_{part}2014.json'), ImageFolder(made / 'imagenet' / part)
    voc, classes = made / 'VOCdevkit/VOC2012', [category['name'] for category in index.dataset['categories']]
    assert classes == folder.classes == list(CLASS_NAMES)
    for number, image in index.imgs.items():
        scene = made / f'coco/{part}2014' / image['file_name']
        assert (voc / f'JPEGImages/{number:06d}.jpg').read_bytes() == scene.read_bytes()
        palette_mask = Image.open(voc / f'SegmentationClassAug/{number:06d}.png')
        assert (palette_mask.mode, palette_mask.getpalette()[:63]) == ('P', voc_palette()[:21].ravel().tolist())
        mask, expected = np.asarray(palette_mask), np.zeros((SCENE, SCENE), np.uint8)
        for annotation in index.imgToAnns[number]:
            decoded = index.annToMask(annotation).astype(bool)
            expected[decoded] = annotation['category_id']
            assert_drawn(annotation, decoded, mask)
        assert mask.shape == (image['height'], image['width'])
        assert ((mask != expected) & (mask != IGNORED)).sum() <= len(index.imgToAnns[number])
        assert (mask == IGNORED).any() == bool(index.imgToAnns[number])
    names = [re.fullmatch(r'(\d{6})_(\d)\.jpg', Path(path).name).groups() for path, _ in folder.samples]
    found = {int(number + place): label + 1 for (number, place), label in zip(names, folder.targets, strict=True)}
    assert found == {key: annotation['category_id'] for key, annotation in index.anns.items()}
    assert np.ptp(np.bincount(folder.targets, minlength=len(CLASS_NAMES))) <= 1
    sizes = np.digitize([annotation['area'] for annotation in index.anns.values()], [32**2, 96**2])
    assert min(np.bincount(sizes, minlength=3)) >= {'train': 2, 'val': 1}[part]
    assert not all(index.imgToAnns[number] for number in index.imgs)


def test_what_cannot_be_written_leaves_nothing_and_what_is_there_is_kept(tmp_path, capsys, monkeypatch):
    script = Script(sample, tmp_path / 'out', '--train 4 --val 4 -j 1')
    with monkeypatch.context() as patch:
        patch.setattr(sample, 'write_index', Mock(side_effect=OSError(28, 'No space left on device')))
        assert 'No space left on device' in script.error(capsys)
    for arguments in '--train 3', '--val 0', '--seed -1', '--train many', '-j 0':
        assert arguments.split()[0] in script.error(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())
    script()
    before = contents(tmp_path)
    assert f'{tmp_path}/out exists already' in script.error(capsys, '--seed', 1)
    assert contents(tmp_path) == before


# VOC, augmented by SBD


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
    """What counts of SBD's: a 1 x 1 struct GTcls with the segmentation."""
    savemat(path, {'GTcls': {'Segmentation': labels}})


@pytest.fixture
def folders(tmp_path):
    voc, sbd = tmp_path / 'VOC2012', tmp_path / 'sbd'
    for folder in (voc / 'JPEGImages', voc / 'SegmentationClass', voc / 'ImageSets' / 'Segmentation', sbd / 'cls'):
        folder.mkdir(parents=True)
    for part in NAMES:
        (voc / 'ImageSets' / 'Segmentation' / f'{part}.txt').write_text('\n'.join(NAMES[part]) + '\n')
        (sbd / f'{part}.txt').write_text('\n'.join(THEIRS[part]) + '\n')
        for name in NAMES[part]:
            mask_image(mask(255)).save(voc / 'SegmentationClass' / f'{name}.png')
        for label, name in enumerate(THEIRS[part], 3):
            write_sbd(sbd / 'cls' / f'{name}.mat', mask(label))
    for name in 'abstvw':
        Image.new('RGB', (8, 6)).save(voc / 'JPEGImages' / f'{name}.jpg')
    return voc, sbd


def test_lists_and_masks_are_written_and_segment_reads_them(folders, capsys):
    Script(prepare_voc, folders[0], str(folders[1]))()
    assert 'train_aug.txt: 4 images, where the full sets have 10,582' in capsys.readouterr().out
    for part, fills in {'train_aug': {'a': 255, 'b': 255, 's': 4, 't': 3}, 'val': {'v': 255, 'w': 255}}.items():
        voc, scenes = folders[0], open_voc(folders[0], f'{part}.txt', PadToSize(17))
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
        (lambda voc, sbd: savemat(sbd / 'cls' / 's.mat', {'other': 1}), 's.mat holds no GTcls.Segmentation'),
        (lambda voc, sbd: write_sbd(sbd / 'cls' / 's.mat', mask(3, (6, 9))), r's.mat is of \(6, 9\) pixels, its image'),
        (lambda voc, sbd: write_sbd(sbd / 'cls' / 's.mat', mask(21)), 's.mat: labels must be H x W, from 0 to 20'),
        (lambda voc, sbd: (voc / 'JPEGImages' / 't.jpg').unlink(), 'JPEGImages lacks 1 images: t.jpg'),
        (lambda voc, sbd: (sbd / 'val.txt').unlink(), 'no list .*val.txt'),
        (lambda voc, sbd: (sbd / 'val.txt').write_text('\n'), 'val.txt is empty'),
    ],
)
def test_what_is_wrong_with_voc_or_sbd_is_told_and_nothing_is_written(folders, capsys, spoil, told):
    spoil(*folders)
    before = sorted(folders[0].iterdir())
    assert re.search(told, Script(prepare_voc, folders[0], str(folders[1])).error(capsys))
    assert sorted(folders[0].iterdir()) == before


# Fashion-MNIST


IMAGES, LABELS = 'train-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'
CLASSES = ['t-shirt_or_top', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle_boot']


# 30 to learn from and 20 held out, all grey levels different from their neighbours'.
LEVELS = (np.arange(30 * 28 * 28).reshape(30, 28, 28) * 7).astype(np.uint8)
PHOTOS = {'train': LEVELS, 'val': LEVELS[::-1][:20]}


@pytest.fixture
def convert(tmp_path):
    """data/fashion_mnist.py with an output folder and the source."""
    source = write_fashion(tmp_path / 'source', *PHOTOS.values())
    return Script(fashion_mnist, tmp_path / 'out', f'--source {source}')


def test_every_picture_lies_under_its_class(convert, tmp_path, capsys):
    convert()
    for part, images in PHOTOS.items():
        folder = ImageFolder(tmp_path / 'out' / part)
        assert (len(folder), folder.classes) == (len(images), sorted(CLASSES))
        for number, image in enumerate(images):
            path = tmp_path / 'out' / part / CLASSES[number % 10] / f'{number:05d}.png'
            assert np.array_equal(np.asarray(folder.loader(path))[..., 0], image)
    assert 'exists already' in convert.error(capsys)


@pytest.mark.parametrize(
    'spoil, told',
    [
        (lambda at: (at / LABELS).unlink(), f'no file .*{LABELS}: install .* dataset-fashion-mnist'),
        (lambda at: os.truncate(at / IMAGES, 99), f'{IMAGES} is no idx file'),
        (lambda at: (at / LABELS).rename(at / IMAGES), f'{IMAGES} is no idx file'),
        (lambda at: write_fashion(at, LEVELS.reshape(30, 14, 56), LEVELS), '14 x 56'),
        (lambda at: (write_fashion(at / 'x', LEVELS[1:], LEVELS) / IMAGES).replace(at / IMAGES), '30 labels for 29'),
        (lambda at: write_fashion(at, LEVELS, LEVELS[:9]), 'are not 0 to 9'),
    ],
)
def test_spoiled_files_are_named_and_nothing_is_written(convert, tmp_path, capsys, spoil, told):
    spoil(tmp_path / 'source')
    assert re.search(told, convert.error(capsys))
    assert [path.name for path in tmp_path.iterdir()] == ['source']
