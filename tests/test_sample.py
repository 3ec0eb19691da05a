"""data/sample.py: the same scenes in all three layouts, byte for byte the same from the same arguments."""

import json
import re
import runpy
import signal
import sys
import time
from pathlib import Path
from unittest.mock import Mock

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
from utils.interrupt import StopRequest

SCENES = {'train': 12, 'val': 6}
OBEY_PARENT = sample._obey_parent


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A set of 12 + 6 scenes, written by this process."""
    folder = tmp_path_factory.mktemp('sample')
    sample.write_sample(folder, 0, SCENES, workers=1)
    return folder


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


def late():
    time.sleep(0.5)
    OBEY_PARENT()


def test_workers_end_when_told_though_their_parent_only_notes_signals(monkeypatch):
    """A pool ends its workers by SIGTERM, even those that have just begun, and waits for them."""
    with StopRequest(), sample.pool_map(2) as map_:
        assert list(map_(signal.getsignal, [signal.SIGTERM])) == [signal.SIG_DFL]
    monkeypatch.setattr(sample, '_obey_parent', late)
    with StopRequest(), sample.pool_map(2):
        pass


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
    below_a_file = tmp_path / 'out' / 'sample.json' / 'out'
    assert f'cannot write {below_a_file}: ' in Script(sample, below_a_file, '-j 1').error(capsys)
