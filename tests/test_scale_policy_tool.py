"""tools/scale_policy.py: the picture and the numbers it writes for single pictures and for folders; mistakes."""

import json

import pytest
import torch
from PIL import Image

import models
from tests.conftest import Script
from tools import scale_policy
from utils import checkpoint


@pytest.fixture
def saved(small, folder, tmp_path):
    """A checkpoint of the small net for the classes of the folder."""
    classes = sorted(path.name for path in (folder / 'val').iterdir())
    content = {'arch': 'small', 'task': 'imagenet', 'classes': classes, 'state_dict': checkpoint.state_dict(small())}
    checkpoint.write(content, tmp_path / 'small.pth.tar')
    return tmp_path / 'small.pth.tar'


@pytest.fixture
def tool(saved, tmp_path):
    """The tool on this checkpoint, writing to out/policy.png."""
    return Script(scale_policy, saved, f'--image-size 64 --device cpu --out {tmp_path}/out/policy.png')


def numbers(tmp_path):
    with Image.open(tmp_path / 'out' / 'policy.png') as picture:
        assert picture.size[0] > 700
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'policy.png', 'policy.json'}
    return json.loads((tmp_path / 'out' / 'policy.json').read_text())


def test_pictures_one_by_one_and_together(tool, folder, tmp_path):
    paths = [folder / 'val' / 'cat' / '0.png', folder / 'val' / 'ant' / '1.png', folder / 'train' / 'fox' / '2.png']
    tool(*paths)
    together = numbers(tmp_path)
    assert [image['file'] for image in together['images']] == list(map(str, paths))
    assert [block['sizes'] for block in together['blocks']] == [
        ['XL', 'L'], ['XL', 'L'], ['L'], ['L', 'M'], ['M'], ['M', 'S'], ['S']
    ]  # fmt: skip
    for path, image in zip(paths, together['images'], strict=True):
        tool(path)
        (alone,) = numbers(tmp_path)['images']
        assert alone['sizes'] == image['sizes']
        for name in ('share', 'shares', 'full', 'half'):
            assert alone[name] == pytest.approx(image[name], rel=1e-3)
        assert image['shares'] == pytest.approx(
            [full / (full + half) for full, half in zip(image['full'], image['half'], strict=True)], rel=1e-3
        )


def test_a_folder_by_class_and_its_extremes(tool, folder, tmp_path):
    tool(folder / 'val', '-b', 5)
    found = numbers(tmp_path)
    assert list(found['classes']) == ['ant', 'bee', 'cat', 'dog', 'eel', 'fox']
    assert len(found['images']) == 18
    for name, summary in found['classes'].items():
        members = [image for image in found['images'] if image['class'] == name]
        assert summary['images'] == len(members) == 3
        assert all(f'/val/{name}/' in image['file'] for image in members)
        assert summary['share'] == pytest.approx(sum(image['share'] for image in members) / 3, rel=1e-3)
        prefer = [sum(image['shares'][block] >= 0.5 for image in members) / 3 for block in range(4)]
        assert summary['prefer_full'] == pytest.approx(prefer, rel=1e-3)
    ranked = [image['file'] for image in sorted(found['images'], key=lambda image: image['share'])]
    assert (found['least'], found['most']) == (ranked[:10], ranked[:-11:-1])


def test_many_pictures_and_classes_are_drawn_in_part(tool, folder, tmp_path, monkeypatch):
    monkeypatch.setattr('utils.policy_figure.MOST_ROWS', 2)
    monkeypatch.setattr('utils.policy_figure.MOST_CLASSES', 4)
    tool(*sorted((folder / 'val').glob('*/0.png')))
    assert len(numbers(tmp_path)['images']) == 6
    tool(folder / 'val')
    assert len(numbers(tmp_path)['classes']) == 6


def test_a_file_of_2019_names_neither_net_nor_classes(tool, saved, small, folder, tmp_path, capsys):
    picture = folder / 'val' / 'cat' / '0.png'
    tool(picture)
    named = numbers(tmp_path)
    torch.save(checkpoint.state_dict(small()), saved)
    tool(picture)
    assert numbers(tmp_path) == named
    assert 'does not fit the net' in tool.error(capsys, picture, '--arch', 'se_resnext50_elastic')
    assert 'holds no classifier.bias' in tool.error(capsys, picture, '--arch', 'densenet201')
    tool(picture, '--arch', 'small')
    assert numbers(tmp_path) == named


def test_mistakes_are_one_line_and_leave_nothing(tool, saved, folder, tmp_path, capsys):
    picture = folder / 'val' / 'cat' / '0.png'
    assert 'no picture and no folder' in tool.error(capsys, picture, folder / 'nowhere.png')
    assert 'give one folder, or pictures' in tool.error(capsys, picture, folder / 'val')
    assert f'cannot write {saved}/x.png' in tool.error(capsys, picture, '--out', f'{saved}/x.png')
    assert '--out' in tool.error(capsys, picture, '--out', tmp_path / 'x.jpg')
    assert '--image-size' in tool.error(capsys, picture, '--image-size', 31)
    assert 'small.pth.tar: a checkpoint of small' in tool.error(capsys, picture, '--arch', 'resnext50_elastic')
    picture.write_bytes(picture.read_bytes()[:200])
    assert str(picture) in tool.error(capsys, picture)
    (folder / 'val' / 'dog' / 'x.png').touch()
    assert 'dog/x.png' in tool.error(capsys, folder / 'val' / 'dog' / 'x.png')
    plain = {'arch': 'dla60x', 'classes': ['a', 'b'], 'state_dict': checkpoint.state_dict(models.dla60x(2))}
    checkpoint.write(plain, saved)
    assert 'dla60x has no elastic block' in tool.error(capsys, folder / 'val')
    assert not list(tmp_path.glob('out/*'))
