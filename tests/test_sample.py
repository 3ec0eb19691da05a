"""data/sample.py: the same scenes in all three layouts, byte for byte the same from the same arguments."""

import errno
import json
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder

from data import sample
from data.layouts import make_folders, polygon_area, write_scene
from data.palette import voc_palette
from data.scenes import CLASS_NAMES, IGNORED, SCENE, render_scene
from tests.conftest import Script
from utils.signals import StopRequest

SCENES = {'train': 12, 'val': 6}

every_part = pytest.mark.parametrize('part', SCENES)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A set of 12 + 6 scenes, written by this process."""
    folder = tmp_path_factory.mktemp('sample') / 'out'
    folder.mkdir()
    sample.write_sample(folder, 0, SCENES, workers=1)
    return folder


@pytest.fixture
def script(tmp_path):
    """data/sample.py writing 4 + 4 scenes into a new folder."""
    return Script(sample, tmp_path / 'out', '--train 4 --val 4 -j 1')


def coco(made, part):
    return COCO(made / f'coco/annotations/instances_{part}2014.json')


def voc_mask(made, number):
    """With VOC's palette; the picture is COCO's."""
    voc, (scene,) = made / 'VOCdevkit/VOC2012', made.glob(f'coco/*2014/COCO_*2014_{number:012d}.jpg')
    assert (voc / f'JPEGImages/{number:06d}.jpg').read_bytes() == scene.read_bytes()
    mask = Image.open(voc / f'SegmentationClassAug/{number:06d}.png')
    assert (mask.mode, mask.getpalette()[:63]) == ('P', voc_palette().ravel().tolist()[:63])
    return np.asarray(mask)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_two_workers_write_the_same_bytes_and_a_second_call_writes_nothing(made, tmp_path, monkeypatch, capsys):
    """Run as a file, and from any folder."""
    out = tmp_path / 'deep' / 'out'
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    monkeypatch.setattr(sys, 'argv', ['sample.py', *f'{out} --train 12 --val 6 -j 2'.split()])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(sample.__file__, run_name='__main__')
    written = contents(out)
    settings = json.loads(written.pop(Path('sample.json')))
    assert (settings['seed'], settings['train'], settings['val']) == (0, 12, 6)
    assert written == contents(made)
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    runpy.run_path(sample.__file__, run_name='__main__')
    assert 'already' in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert [path.name for path in out.parent.iterdir()] == ['out']


def is_default(number):
    return signal.getsignal(number) is signal.SIG_DFL


def late():
    time.sleep(0.5)
    OBEY_PARENT()


OBEY_PARENT = sample._obey_parent


def test_workers_end_when_told_though_their_parent_only_notes_signals(monkeypatch):
    """A pool ends its workers by SIGTERM, even those that have just begun, and waits for them."""
    with StopRequest(), sample.pool_map(2) as map_:
        assert list(map_(is_default, [signal.SIGTERM])) == [True]
    monkeypatch.setattr(sample, '_obey_parent', late)
    with StopRequest(), sample.pool_map(2):
        pass


def test_seeds_and_parts_share_no_scene_and_longer_sets_begin_with_shorter_ones(made, tmp_path):
    sample.write_sample(tmp_path, 1, {'train': 4, 'val': 4}, workers=1)
    pictures = [path.read_bytes() for folder in (made, tmp_path) for path in folder.glob('coco/*2014/*.jpg')]
    assert len(set(pictures)) == len(pictures) == 18 + 8
    assert sample.plan(0, 'val', 30)[:7] == sample.plan(0, 'val', 7)
    assert sample.plan(0, 'val', 30) != sample.plan(0, 'train', 30)


@every_part
def test_polygons_masks_and_areas_agree(made, part):
    index = coco(made, part)
    assert [category['name'] for category in index.dataset['categories']] == list(CLASS_NAMES)
    for number, image in index.imgs.items():
        mask, annotations = voc_mask(made, number), index.imgToAnns[number]
        expected = np.zeros((SCENE, SCENE), np.uint8)
        for annotation in annotations:
            points = np.reshape(annotation['segmentation'], (-1, 2))
            assert (points >= 0).all() and (points <= SCENE).all()
            assert annotation['bbox'] == pytest.approx([*points.min(0), *np.ptp(points, 0)], abs=0.011)
            assert annotation['area'] == pytest.approx(polygon_area(points), abs=0.01)
            decoded = index.annToMask(annotation).astype(bool)
            expected[decoded] = annotation['category_id']
            assert decoded.sum() == pytest.approx(annotation['area'], rel=0.04, abs=12)
            inside, around = (mask[decoded] == annotation['category_id']).sum(), (mask[decoded] == IGNORED).sum()
            assert inside + around >= decoded.sum() - 1  # the pixel of a tip: COCO rounds corners, we do not
            assert inside > around / 2
        assert mask.shape == (image['height'], image['width'])
        assert ((mask != expected) & (mask != IGNORED)).sum() <= len(annotations)
        assert (mask == IGNORED).any() == bool(annotations)


@every_part
def test_folder_pictures_are_the_annotated_objects(made, part):
    index, folder = coco(made, part), ImageFolder(made / 'imagenet' / part)
    assert folder.classes == list(CLASS_NAMES)
    found = {}
    for path, label in folder.samples:
        number, place = map(int, re.fullmatch(r'(\d{6})_(\d)\.jpg', Path(path).name).groups())
        found[10 * number + place] = label + 1
    assert found == {key: annotation['category_id'] for key, annotation in index.anns.items()}
    assert np.ptp(np.bincount(folder.targets, minlength=len(CLASS_NAMES))) <= 1


def test_objects_are_small_medium_and_large_and_some_scenes_empty(made):
    index = coco(made, 'train')
    sizes = np.digitize([annotation['area'] for annotation in index.anns.values()], [32**2, 96**2])
    assert min(np.bincount(sizes)) >= 2
    assert [number for number in index.imgs if not index.imgToAnns[number]]


@pytest.mark.parametrize('labels', [(7,), (8, 6, 5), (1, 2, 3, 4)])
def test_a_frame_holds_its_object_alone(tmp_path, labels):
    scene = render_scene(np.random.default_rng(3), labels)
    make_folders(tmp_path)
    write_scene(tmp_path, 'val', 9, scene)
    assert [thing.label for thing in scene.things] == list(labels)
    for index, thing in enumerate(scene.things):
        left, top, right, bottom = thing.frame
        assert ((left, top) <= thing.polygon).all() and (thing.polygon <= (right, bottom)).all()
        assert set(np.unique(scene.mask[top:bottom, left:right])) == {0, thing.label, IGNORED}
        path = tmp_path / 'imagenet' / 'val' / CLASS_NAMES[thing.label - 1] / f'000009_{index}.jpg'
        difference = np.asarray(Image.open(path), int) - scene.picture[top:bottom, left:right]
        assert np.abs(difference).mean() < 8  # what JPEG loses


def test_what_is_there_is_kept(script, tmp_path, capsys):
    script()
    before = contents(tmp_path)
    assert f'{tmp_path}/out exists already' in script.error(capsys, '--seed', 1)
    assert contents(tmp_path) == before
    below_a_file = tmp_path / 'out' / 'sample.json' / 'out'
    assert f'cannot write {below_a_file}: ' in Script(sample, below_a_file, '-j 1').error(capsys)


@pytest.mark.parametrize('arguments', ['--train 3', '--val 0', '--seed -1', '--train many', '-j 0', ''])
def test_senseless_arguments_and_a_full_disk_leave_nothing(script, tmp_path, capsys, monkeypatch, arguments):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(sample, 'write_index', full)
    error = script.error(capsys, *arguments.split())
    assert (arguments.split()[0] if arguments else 'No space left on device') in error
    assert not list(tmp_path.iterdir())
