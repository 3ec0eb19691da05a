"""tools/predict.py: what it prints and draws against plain computations, what is told as wrong; exported nets."""

import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad
from torchvision import transforms as T

import models
from data.class_names import default_names
from data.palette import voc_palette
from data.voc import CLASSES
from tests.checkpoints import save_net
from tests.conftest import Script, TinyNet, TinySegmenter
from tests.nets import assert_equals_eager, filled, in_make_test
from tools import predict as script
from tools.export import export
from utils.loader import MEAN, STD

NAMES = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu']
FOLDERS, OF_FOLDERS = [f'n{10_000_000 + 7 * place}' for place in range(1000)], default_names('imagenet', 1000)
CROP = T.Compose([T.Resize(37), T.CenterCrop(32)])  # 37: 32 * 256 / 224, rounded


@pytest.fixture
def predict(tmp_path, tiny):
    return Script(script, tmp_path / 'net.pth', '--device cpu --image-size 32 -b 3')


@pytest.fixture
def pictures(tmp_path):
    """Four, noise about a color of the picture's own."""
    (tmp_path / 'pictures').mkdir()
    for seed, (width, height) in enumerate([(40, 60), (90, 50), (32, 32), (50, 40)]):
        random = np.random.RandomState(seed)
        pixels = random.rand(height, width, 3) * 100 + random.rand(3) * 150
        Image.fromarray(pixels.astype('uint8')).save(tmp_path / 'pictures' / f'{seed}.png')
    return sorted((tmp_path / 'pictures').iterdir())


def normalized(image):
    return T.functional.normalize(T.functional.to_tensor(image), MEAN, STD)[None]


def assert_blocks(text, expected):
    """Below the first line there is a block for each title, of its pairs of score and name, the highest first."""
    shown = [block.split('\n') for block in text.rstrip('\n').split('\n\n')[1:]]
    assert [title for title, *_ in shown] == list(expected)
    for (_, *rows), pairs in zip(shown, expected.values(), strict=True):
        scores, names = zip(*sorted(pairs, reverse=True), strict=True)
        assert [row.split(' ', 1)[1] for row in rows] == list(names)
        assert [float(row.split(' ')[0]) for row in rows] == pytest.approx(scores, abs=6e-5)


def test_pictures_of_a_size_that_a_librarys_net_does_not_take(predict, pictures, tmp_path, capsys):
    arch = 'timm/vit_tiny_patch16_224'
    state = models.classifiers[arch](7).state_dict()
    torch.save({'arch': arch, 'task': 'imagenet', 'state_dict': state}, tmp_path / 'net.pth')
    assert f'error: {arch} takes no pictures of 32 pixels: Input height' in predict.error(capsys, *pictures)


@pytest.mark.parametrize(
    'task, classes, names, seen, function, shown',
    [
        ('imagenet', FOLDERS, OF_FOLDERS, CROP, torch.nn.Softmax(1), lambda rows: rows[-5:]),
        ('coco', NAMES, NAMES, T.Resize((32, 32)), torch.sigmoid, lambda rows: [row for row in rows if row[0] > 0.5]),
    ],
)
def test_five_most_probable_classes_or_all_labels(
    predict, pictures, tmp_path, capsys, task, classes, names, seen, function, shown
):
    model = save_net(tmp_path / 'net.pth', TinyNet(len(classes)), task=task, arch='tiny', classes=classes)
    predict(*pictures)
    out = capsys.readouterr().out
    assert out.startswith(f'tiny for {task}, {len(classes)} classes, 32 pixels\n')
    scores = [function(model(normalized(seen(Image.open(picture)))))[0].tolist() for picture in pictures]
    rows = [shown(sorted(zip(each, names, strict=True))) for each in scores]
    assert_blocks(out, dict(zip(map(str, pictures), rows, strict=True)))
    assert all(0 < len(each) < 7 for each in rows)
    assert len({max(each) for each in rows}) > 1


def test_no_label_is_said(predict, pictures, tmp_path, capsys):
    save_net(tmp_path / 'net.pth', TinyNet(7), bias=-1e3, task='coco', arch='tiny')
    predict(pictures[0])
    assert capsys.readouterr().out.endswith('0.png\nno label\n')


def test_overlays_of_pictures_below_a_folder_whatever_their_size(predict, pictures, tmp_path, capsys):
    model = save_net(tmp_path / 'net.pth', TinySegmenter(), task='voc', arch='tiny')
    folder, out, expected = pictures[0].parent, tmp_path / 'out', {}
    (folder / 'more').mkdir()
    (folder / 'notes.txt').touch()
    Image.open(pictures[1]).save(folder / 'more' / '0.JPG')
    predict(folder, '--output', out, '--image-size', 65)
    names = [*(f'{path.stem}_overlay.jpg' for path in pictures), '0_overlay_2.jpg']
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for place, name in zip([*pictures, folder / 'more' / '0.JPG'], names, strict=True):
        picture = Image.open(place)
        (width, height), wide = picture.size, max(65, -(-(picture.width - 1) // 16) * 16 + 1)
        left, top = (wide - width) // 2, (65 - height) // 2
        around = left, wide - width - left, top, 65 - height - top
        labels = model(pad(normalized(picture), around)).argmax(1)[0, top : top + height, left : left + width].numpy()
        places, counts = np.unique(labels, return_counts=True)
        assert len(places) > 1
        parts = [(count / labels.size, CLASSES[place]) for count, place in zip(counts, places, strict=True)]
        expected[f'{place} -> {out / name}'] = parts
        image = np.asarray(picture)
        blend = np.where(labels[..., None] > 0, 0.4 * image + 0.6 * voc_palette()[labels], image).round()
        Image.fromarray(np.concatenate([image, blend.astype(np.uint8)], 1)).save(tmp_path / 'expected.jpg')
        assert (out / name).read_bytes() == (tmp_path / 'expected.jpg').read_bytes()
    assert_blocks(capsys.readouterr().out, expected)


def test_what_is_wrong_is_told_and_nothing_is_written(predict, pictures, tmp_path, capsys):
    out, file = tmp_path / 'out', tmp_path / 'file'
    save_net(tmp_path / 'net.pth', TinySegmenter(), task='voc', arch='tiny')
    assert 'nothing to do' in predict.error(capsys)
    (tmp_path / 'empty').mkdir()
    assert f'no picture in {tmp_path / "empty"}' in predict.error(capsys, tmp_path / 'empty')
    assert 'ends in .pt2' in predict.error(capsys, '--export', out / 'net.onnx')
    own = shutil.copy(pictures[0], pictures[0].with_name('0_overlay.jpg'))
    assert f'{own} would be written over' in predict.error(capsys, pictures[0], own, '--output', own.parent)
    own.unlink()
    pictures[3].write_bytes(pictures[3].read_bytes()[:1000])
    assert f'cannot read image {pictures[3]}' in predict.error(capsys, *pictures, '--output', out, '-b', 1)
    assert not out.exists() or not list(out.iterdir())
    file.touch()
    assert f'cannot write {file}/' in predict.error(capsys, pictures[0], '--output', file)


def test_exports_are_all_or_none(predict, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'
    model = save_net(tmp_path / 'net.pth', TinyNet(7), task='imagenet', arch='tiny')
    full, absent = OSError(28, 'No space left on device'), 'no ONNX file: that needs pip install onnx onnxscript'
    monkeypatch.setattr('tools.export.save_onnx', Mock(side_effect=[full, None]))
    monkeypatch.setattr('tools.export.find_spec', lambda name: True)
    assert 'No space left' in predict.error(capsys, '--export', out / 'net.pt2')
    assert not list(out.iterdir())
    for there, told in (True, f'exported: {out}/net.onnx'), (None, absent):
        monkeypatch.setattr('tools.export.find_spec', lambda name, there=there: there)
        predict('--export', out / 'net.pt2')
        assert capsys.readouterr().out.splitlines()[1:] == [f'exported: {out}/net.pt2', told]
    assert_equals_eager([out / 'net.pt2'], model, 32)


@in_make_test('densenet_elastic', 'deeplab', 'dla_up')  # whose trunks are a ResNeXt and a DLA
def test_exports_equal_eager(name, tmp_path):
    """At 65 pixels the maps are odd at every stride, as at VOC's 513: elastic blocks pool half windows, and crop."""
    model = filled(name, 9)
    assert_equals_eager(export(model, tmp_path / 'net.pt2', 65), model, 65)
