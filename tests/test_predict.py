"""tools/predict.py: what it prints and draws against plain computations, what is told as wrong, what it exports."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import pad
from torchvision.transforms import functional as T

from data.class_names import default_names, readable_names
from data.palette import voc_palette
from data.voc import CLASSES
from tests.conftest import Script, TinyNet, TinySegmenter
from tests.nets import assert_equals_eager
from tests.reference import load_weights
from tools import predict as script
from utils import checkpoint
from utils.loader import MEAN, STD

NAMES = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu']
IMAGENET = {'task': 'imagenet', 'arch': 'tiny', 'classes': NAMES}
VOC = {'task': 'voc', 'arch': 'tiny', 'classes': CLASSES}
IMAGE_SIZE = 32


@pytest.fixture
def save(tmp_path, tiny):
    """Writes a tiny net as a checkpoint that says what is given."""

    def write(net, number, **said):
        model = load_weights(net(number)).eval()
        with torch.no_grad():
            head = model.get_submodule(model.heads[0])
            head.weight *= 5  # so that pictures, and their parts, are told apart
            head.bias.zero_()
        torch.save({'state_dict': checkpoint.state_dict(model), **said}, tmp_path / 'net.pth')
        return model

    return write


@pytest.fixture
def predict(tmp_path, tiny):
    return Script(script, tmp_path / 'net.pth', f'--device cpu --image-size {IMAGE_SIZE} -b 3')


@pytest.fixture
def pictures(tmp_path):
    """Four, noise about a colour of the picture's own."""
    (tmp_path / 'pictures').mkdir()
    for seed, (width, height) in enumerate([(40, 60), (90, 50), (32, 32), (50, 40)]):
        random = np.random.RandomState(seed)
        pixels = random.rand(height, width, 3) * 100 + random.rand(3) * 150
        Image.fromarray(pixels.astype('uint8')).save(tmp_path / 'pictures' / f'{seed}.png')
    return sorted((tmp_path / 'pictures').iterdir())


def normalised(image):
    return T.normalize(T.to_tensor(image), MEAN, STD)[None]


def blocks(text):
    """The first line, and the picture's line with its (score, name) for each block."""
    first, *rest = text.rstrip('\n').split('\n\n')
    parts = [block.split('\n') for block in rest]
    return first, [(title, [tuple(row.split(' ', 1)) for row in rows]) for title, *rows in parts]


def assert_rows(printed, expected):
    """The rows are the expected pairs of score and name, the highest first."""
    expected = sorted(expected, reverse=True)
    assert [name for _, name in printed] == [name for _, name in expected]
    assert [float(score) for score, _ in printed] == pytest.approx([score for score, _ in expected], abs=6e-5)


@pytest.mark.parametrize(
    'task, seen, function, shown',
    [
        ('imagenet', lambda image: T.center_crop(T.resize(image, 37), 32), torch.nn.Softmax(1), lambda rows: rows[-5:]),
        ('coco', lambda image: T.resize(image, (32, 32)), torch.sigmoid, lambda rows: [r for r in rows if r[0] > 0.5]),
    ],
)
def test_five_most_probable_classes_or_all_labels(save, predict, pictures, capsys, task, seen, function, shown):
    """Of the central crop (37: 32 * 256 / 224, rounded), or of the squashed picture."""
    model = save(TinyNet, 7, task=task, arch='tiny', classes=NAMES)
    predict(*pictures)
    first, found = blocks(capsys.readouterr().out)
    assert first == f'tiny for {task}, 7 classes, 32 pixels'
    assert [title for title, _ in found] == list(map(str, pictures))
    for path, (_, rows) in zip(pictures, found, strict=True):
        scores = function(model(normalised(seen(Image.open(path)))))[0].tolist()
        assert_rows(rows, shown(sorted(zip(scores, NAMES, strict=True))))
        assert 0 < len(rows) < 7
    assert len({rows[0] for _, rows in found}) > 1


def test_no_label_is_said(save, predict, pictures, capsys):
    model = save(TinyNet, 7)
    nn.init.zeros_(model.fc.weight)
    torch.save(model.state_dict(), predict.shared[0])
    predict(pictures[0], '--task', 'coco', '-a', 'tiny')
    assert capsys.readouterr().out.endswith('0.png\nno label\n')


def test_overlays_are_of_the_centred_pictures_below_a_folder_whatever_their_size(
    save, predict, pictures, tmp_path, capsys
):
    model, folder = save(TinySegmenter, 21, **VOC), pictures[0].parent
    (folder / 'more').mkdir()
    (folder / 'notes.txt').touch()
    Image.open(pictures[1]).save(folder / 'more' / '0.JPG')
    predict(folder, '--output', tmp_path / 'out', '--image-size', 65)
    _, found = blocks(capsys.readouterr().out)
    names = [*(f'{path.stem}_overlay.jpg' for path in pictures), '0_overlay_2.jpg']
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(names)
    for path, name, (title, rows) in zip([*pictures, folder / 'more' / '0.JPG'], names, found, strict=True):
        assert title == f'{path} -> {tmp_path}/out/{name}'
        picture = Image.open(path)
        (width, height), wide = picture.size, max(65, -(-(picture.width - 1) // 16) * 16 + 1)
        left, top = (wide - width) // 2, (65 - height) // 2
        around = left, wide - width - left, top, 65 - height - top
        labels = model(pad(normalised(picture), around)).argmax(1)[0, top : top + height, left : left + width].numpy()
        places, counts = np.unique(labels, return_counts=True)
        assert len(places) > 1
        assert_rows(rows, [(n / labels.size, CLASSES[place]) for n, place in zip(counts, places, strict=True)])
        image = np.asarray(picture)
        blend = np.where(labels[..., None] > 0, 0.4 * image + 0.6 * voc_palette()[labels], image).round()
        Image.fromarray(np.concatenate([image, blend.astype(np.uint8)], 1)).save(tmp_path / 'expected.jpg')
        assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'expected.jpg').read_bytes()


def test_folders_of_imagenet_are_shown_by_their_names(save, predict, pictures, capsys):
    folders = [f'n{10_000_000 + 7 * place}' for place in range(1000)]
    save(TinyNet, 1000, **IMAGENET | {'classes': folders})
    predict(pictures[0])
    _, [(_, rows)] = blocks(capsys.readouterr().out)
    assert {name for _, name in rows} <= set(default_names('imagenet', 1000))
    for others in (folders[::-1], folders[:-1], ['x', *folders[1:]]):
        assert readable_names('imagenet', others) == others
    assert readable_names('coco', folders[:80]) == folders[:80]


def test_what_is_wrong_is_told_and_nothing_is_written(save, predict, pictures, tmp_path, capsys):
    out = tmp_path / 'out'
    assert 'no checkpoint at ' in predict.error(capsys, pictures[0])
    save(TinySegmenter, 21, **VOC)
    assert 'nothing to do' in predict.error(capsys)
    assert '--image-size: invalid' in predict.error(capsys, pictures[0], '--image-size', 31)
    (tmp_path / 'empty').mkdir()
    assert f'no picture in {tmp_path / "empty"}' in predict.error(capsys, tmp_path / 'empty')
    assert 'ends in .pt2' in predict.error(capsys, '--export', out / 'net.onnx')
    pictures[3].write_bytes(pictures[3].read_bytes()[:1000])
    assert f'cannot read image {pictures[3]}' in predict.error(capsys, *pictures, '--output', out, '-b', 1)
    assert not out.exists() or not list(out.iterdir())
    (tmp_path / 'file').touch()
    assert f'cannot write {tmp_path / "file"}' in predict.error(capsys, pictures[0], '--output', tmp_path / 'file')


@pytest.mark.parametrize('onnx', ['absent', 'there', 'too large'])
def test_exports_are_all_or_none(save, predict, tmp_path, monkeypatch, capsys, onnx):
    """What is in an ONNX file is tests/test_export.py's."""
    model, out = save(TinyNet, 7, **IMAGENET), tmp_path / 'out'

    def write(program, path):
        path.write_bytes(b'half')
        if onnx == 'too large':
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr('tools.export.find_spec', lambda name: onnx != 'absent')
    monkeypatch.setattr('tools.export.save_onnx', write)
    if onnx == 'too large':
        assert 'No space left' in predict.error(capsys, '--export', out / 'net.pt2')
        assert not list(out.iterdir())
        return
    predict('--export', out / 'net.pt2')
    second = f'exported: {out}/net.onnx' if onnx == 'there' else 'no ONNX file: that needs pip install onnx onnxscript'
    assert capsys.readouterr().out.splitlines()[1:] == [f'exported: {out}/net.pt2', second]
    assert (out / 'net.onnx').exists() == (onnx == 'there')
    assert_equals_eager([out / 'net.pt2'], model, IMAGE_SIZE)
