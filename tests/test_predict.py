"""tools/predict.py: what it prints and draws against plain computations, what is told as wrong, what it exports."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import pad
from torchvision.transforms import functional as T

import models
from data.palette import voc_palette
from tests.conftest import Script, TinyNet, TinySegmenter
from tests.pictures import Oracle, scene
from tests.test_export import assert_equals_eager, lively
from tools import predict as script
from utils import checkpoint
from utils.class_names import default_names, readable_names
from utils.data import MEAN, STD
from utils.voc import CLASSES

NAMES = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu']
IMAGE_SIZE = 32


@pytest.fixture
def save(tmp_path, tiny):
    """Writes a tiny net as a checkpoint that says what is given."""

    def write(net, number, **said):
        model = lively(net(number))
        with torch.no_grad():
            head = model.get_submodule(model.heads[0])
            head.weight *= 20  # so that pictures, and their parts, are told apart
            head.bias.zero_()
        torch.save({'state_dict': checkpoint.state_dict(model), **said}, tmp_path / 'net.pth')
        return model

    return write


@pytest.fixture
def predict(tmp_path, tiny):
    return Script(script, tmp_path / 'net.pth', f'--device cpu --image-size {IMAGE_SIZE} -b 3')


def draw(folder, sizes):
    """Noise about a colour of the picture's own."""
    folder.mkdir()
    for seed, (width, height) in enumerate(sizes):
        random = np.random.RandomState(seed)
        pixels = random.rand(height, width, 3) * 100 + random.rand(3) * 150
        Image.fromarray(pixels.astype('uint8')).save(folder / f'{seed}.png')
    return sorted(folder.iterdir())


@pytest.fixture
def pictures(tmp_path):
    return draw(tmp_path / 'pictures', [(40, 60), (90, 50), (32, 32), (50, 40)])


def normalised(image):
    return T.normalize(T.to_tensor(image), MEAN, STD)[None]


def blocks(text):
    """The first line, and the picture's line with its (score, name) for each block."""
    first, *rest = text.rstrip('\n').split('\n\n')
    parts = [block.split('\n') for block in rest]
    return first, [(title, [tuple(row.split(' ', 1)) for row in rows]) for title, *rows in parts]


def assert_rows(printed, expected):
    assert [name for _, name in printed] == [name for _, name in expected]
    assert [float(score) for score, _ in printed] == pytest.approx([score for score, _ in expected], abs=6e-5)


def test_five_most_probable_classes_of_the_central_crop(save, predict, pictures, capsys):
    model = save(TinyNet, 7, task='imagenet', arch='tiny', classes=NAMES)
    predict(*pictures)
    first, found = blocks(capsys.readouterr().out)
    assert first == 'tiny for imagenet, 7 classes, 32 pixels'
    assert [title for title, _ in found] == list(map(str, pictures))
    for path, (_, rows) in zip(pictures, found, strict=True):
        image = T.center_crop(T.resize(Image.open(path), 37), 32)  # 32 * 256 / 224, rounded
        scores = model(normalised(image)).softmax(1)[0].tolist()
        assert_rows(rows, sorted(zip(scores, NAMES, strict=True), reverse=True)[:5])
    assert len({rows[0] for _, rows in found}) > 1


def test_labels_of_the_squashed_picture(save, predict, pictures, capsys):
    model = save(TinyNet, 7, task='coco', arch='tiny', classes=NAMES)
    predict(*pictures)
    _, found = blocks(capsys.readouterr().out)
    for path, (_, rows) in zip(pictures, found, strict=True):
        scores = model(normalised(T.resize(Image.open(path), (32, 32)))).sigmoid()[0].tolist()
        expected = sorted(((s, name) for s, name in zip(scores, NAMES, strict=True) if s > 0.5), reverse=True)
        assert 0 < len(expected) < 7
        assert_rows(rows, expected)


def test_no_label_is_said(save, predict, pictures, capsys):
    model = save(TinyNet, 7)
    nn.init.zeros_(model.fc.weight)
    nn.init.constant_(model.fc.bias, -1)
    torch.save(model.state_dict(), predict.shared[0])
    predict(pictures[0], '--task', 'coco', '-a', 'tiny')
    assert capsys.readouterr().out.endswith('0.png\nno label\n')


def test_overlays_are_cut_to_the_picture_whatever_its_size(tmp_path, predict, monkeypatch, capsys):
    """The oracle sees other labels in what was added around a picture, so that every pixel of the shares counts."""
    monkeypatch.setitem(models.segmenters, 'oracle', Oracle)
    torch.save(Oracle().state_dict(), predict.shared[0])
    sizes = [(30, 20), (32, 32), (50, 33), (30, 20)]
    (tmp_path / 'in').mkdir()
    scenes = [scene(*size, seed=seed, cell=8) for seed, size in enumerate(sizes)]
    for number, (picture, _) in enumerate(scenes):
        picture.save(tmp_path / 'in' / f'{number}.png')
    predict(tmp_path / 'in', '--task', 'voc', '-a', 'oracle', '--output', tmp_path / 'out', '-b', 2)
    _, found = blocks(capsys.readouterr().out)
    assert len(list((tmp_path / 'out').iterdir())) == 4
    for number, ((picture, mask), (title, rows)) in enumerate(zip(scenes, found, strict=True)):
        target = tmp_path / 'out' / f'{number}_overlay.jpg'
        assert title == f'{tmp_path / "in" / f"{number}.png"} -> {target}'
        labels = np.asarray(mask)
        shares = {CLASSES[place]: (labels == place).mean() for place in np.unique(labels)}
        assert {name: float(score) for score, name in rows} == pytest.approx(shares, abs=6e-5)
        assert [float(score) for score, _ in rows] == sorted((float(score) for score, _ in rows), reverse=True)
        image = np.asarray(picture).astype(float)
        blend = np.where(labels[..., None] > 0, 0.4 * image + 0.6 * voc_palette()[labels], image)
        drawn = np.asarray(Image.open(target)).astype(float)
        np.testing.assert_allclose(drawn.mean(2), np.concatenate([image, blend], 1).mean(2), atol=40)
        assert abs(drawn - np.concatenate([image, blend], 1)).mean() < 12  # JPEG's


def test_segmenter_is_shown_the_centred_picture(save, predict, pictures, tmp_path, capsys):
    model = save(TinySegmenter, 21, task='voc', arch='tiny', classes=CLASSES)
    predict(pictures[3], '--output', tmp_path, '--image-size', 65)
    image = normalised(Image.open(pictures[3]))  # 40 rows of 50 pixels
    labels = model(pad(image, (7, 8, 12, 13))).argmax(1)[0, 12:52, 7:57]
    counts = sorted(((share, CLASSES[place]) for place, share in shares(labels)), reverse=True)
    assert len(counts) > 1
    assert_rows(blocks(capsys.readouterr().out)[1][0][1], counts)


def shares(labels):
    return [(place, (labels == place).float().mean().item()) for place in labels.unique().tolist()]


def test_folder_is_all_pictures_below_and_names_do_not_collide(save, predict, pictures, tmp_path, capsys, monkeypatch):
    save(TinySegmenter, 21, task='voc', arch='tiny', classes=CLASSES)
    folder = pictures[0].parent
    (folder / 'more').mkdir()
    (folder / 'notes.txt').write_text('no picture')
    Image.open(pictures[1]).save(folder / 'more' / '0.JPG')
    monkeypatch.chdir(tmp_path)
    predict(folder)
    _, found = blocks(capsys.readouterr().out)
    assert [title for title, _ in found] == [
        *(f'{path} -> {path.stem}_overlay.jpg' for path in pictures),
        f'{folder / "more" / "0.JPG"} -> 0_overlay_2.jpg',
    ]
    written = {path.name: Image.open(path).size for path in tmp_path.glob('*.jpg')}
    assert written['0_overlay.jpg'] == (80, 60)
    assert written['0_overlay_2.jpg'] == (180, 50)
    assert len(written) == 5


def test_folders_of_imagenet_are_shown_by_their_names(save, predict, pictures, capsys):
    folders = [f'n{10_000_000 + 7 * place}' for place in range(1000)]
    names = default_names('imagenet', 1000)
    save(TinyNet, 1000, task='imagenet', arch='tiny', classes=folders)
    predict(pictures[0])
    _, [(_, rows)] = blocks(capsys.readouterr().out)
    assert {name for _, name in rows} <= set(names)
    assert readable_names('imagenet', folders) == names
    for others in (folders[::-1], folders[:-1], ['x', *folders[1:]]):
        assert readable_names('imagenet', others) == others
    assert readable_names('coco', folders[:80]) == folders[:80]


def test_what_is_wrong_is_told_and_nothing_is_written(save, predict, pictures, tmp_path, capsys):
    out = tmp_path / 'out'
    assert 'no checkpoint at ' in predict.error(capsys, pictures[0])
    save(TinySegmenter, 21, task='voc', arch='tiny', classes=CLASSES)
    assert 'nothing to do' in predict.error(capsys)
    assert '--image-size: invalid' in predict.error(capsys, pictures[0], '--image-size', 31)
    assert f'no picture {tmp_path / "no.jpg"}' in predict.error(capsys, tmp_path / 'no.jpg')
    (tmp_path / 'empty').mkdir()
    assert f'no picture in {tmp_path / "empty"}' in predict.error(capsys, tmp_path / 'empty')
    assert 'ends in .pt2' in predict.error(capsys, '--export', out / 'net.onnx')
    data = pictures[3].read_bytes()
    for content in b'', data[: len(data) // 2]:
        pictures[3].write_bytes(content)
        assert f'cannot read image {pictures[3]}' in predict.error(capsys, *pictures, '--output', out, '-b', 1)
        assert not out.exists() or not list(out.iterdir())
    (tmp_path / 'file').write_text('')
    assert f'cannot write to {tmp_path / "file"}' in predict.error(capsys, pictures[0], '--output', tmp_path / 'file')


def test_exports_from_the_command_line(save, predict, pictures, tmp_path, capsys):
    model, out = save(TinyNet, 7, task='imagenet', arch='tiny', classes=NAMES), tmp_path / 'out'
    predict('--export', out / 'net.pt2', pictures[0])
    first, found = blocks(capsys.readouterr().out)
    files = [out / 'net.pt2', out / 'net.onnx']
    assert first.splitlines()[1:] == [f'exported: {file}' for file in files]
    assert len(found) == 1
    assert sorted(out.iterdir()) == sorted(files)
    assert_equals_eager(files, model, IMAGE_SIZE)


def test_without_onnx_the_program_is_written_and_the_rest_said(save, predict, tmp_path, monkeypatch, capsys):
    save(TinyNet, 7, task='imagenet', arch='tiny', classes=NAMES)
    monkeypatch.setattr('utils.export.find_spec', lambda name: None)
    predict('--export', tmp_path / 'out' / 'net.pt2')
    assert capsys.readouterr().out.splitlines()[1:] == [
        f'exported: {tmp_path / "out" / "net.pt2"}',
        'no ONNX file: that needs pip install onnx onnxscript',
    ]
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['net.pt2']


def test_failed_export_leaves_nothing(save, predict, tmp_path, monkeypatch, capsys):
    save(TinyNet, 7, task='imagenet', arch='tiny', classes=NAMES)

    def fail(program, path):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('utils.export.save_onnx', fail)
    assert 'No space left' in predict.error(capsys, '--export', tmp_path / 'out' / 'net.pt2')
    assert not list((tmp_path / 'out').iterdir())


def test_command_line_from_elsewhere(pictures, tmp_path):
    torch.save({'state_dict': models.build_classifier('dla60x', 80).state_dict()}, tmp_path / 'net.pth')
    command = [sys.executable, script.__file__, tmp_path / 'net.pth', pictures[0], '--image-size=32', '--arch=dla60x']
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, '')
    assert ended.stdout.startswith('dla60x for coco, 80 classes, 32 pixels\n\n')
