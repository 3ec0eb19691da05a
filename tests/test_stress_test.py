"""The stress test: pictures at other scales, and the errors of nets whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import models
from data.drawn_photos import draw_photo
from tests.conftest import Script
from tools import stress_test
from utils.batches import EvalBatches
from utils.compute import Compute
from utils.data import DeviceLoader
from utils.errors import UserError
from utils.image_folder import central_crop, scaled_crop
from utils.output import write_results


@pytest.mark.parametrize('size', [32, 33, 224])
def test_at_factor_one_it_is_the_usual_crop(size):
    for shape in (40, 48), (61, 35), (300, 20):
        photo = draw_photo(np.random.default_rng(0)).resize(shape)
        pixels = scaled_crop(size, 1)(photo)
        assert torch.equal(pixels[:3], central_crop(size)(photo))
        assert pixels.shape == (4, size, size) and pixels[3:].all()


@pytest.mark.parametrize('factor', [0.25, 0.5, 0.75, 1.5, 3])
def test_an_object_grows_by_the_factor(factor):
    """A white square of a quarter of the picture's width, which is 64 pixels as the usual test resizes it."""
    picture = Image.new('RGB', (160, 128))
    picture.paste('white', (64, 48, 96, 80))
    seen = scaled_crop(56, factor)(picture)
    assert seen[0, 28].sum().item() / 255 == pytest.approx(min(16 * factor, 56), abs=0.3)
    inside = seen[3].bool()
    rows, columns = (inside.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    assert (len(rows), len(columns)) == (min(round(64 * factor), 56), min(round(80 * factor), 56))
    assert inside.sum() == len(rows) * len(columns)
    assert all(abs(56 - 1 - first - last) <= 1 for first, *_, last in (rows, columns))
    ((images, _),) = DeviceLoader([(seen, 0)], EvalBatches([range(1)], 1), Compute('cpu'), 0)
    assert (images[0][:, ~inside] == 0).all()  # the mean colour
    assert (images[0][:, inside] != 0).all()


class Ruler(nn.Module):
    """Says class 1, `big`, where more than a tenth of the picture is white. Its head is of no use."""

    heads = ('fc',)

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.fc = nn.Linear(1, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        white = (x.amin(1) > 2).double().mean((1, 2))
        return torch.stack([0.1 - white, white - 0.1], 1)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """The tool on a Ruler and dark pictures of 64 pixels, a white square of 16 (small) or 24 (big) in the middle."""
    for label, first, last, count in (('0_small', 24, 40, 3), ('1_big', 20, 44, 2)):
        (tmp_path / 'data' / 'val' / label).mkdir(parents=True)
        picture = Image.new('RGB', (64, 64))
        picture.paste('white', (first, first, last, last))
        for number in range(count):
            picture.save(tmp_path / 'data' / 'val' / label / f'{number}.png')
    monkeypatch.setitem(models.classifiers, 'ruler', Ruler)
    content = {'arch': 'ruler', 'task': 'imagenet', 'classes': ['0_small', '1_big']}
    torch.save({**content, 'state_dict': Ruler(2).state_dict()}, tmp_path / 'ruler.pth')
    arguments = f'{tmp_path}/data --image-size 56 --device cpu -b 2 --out {tmp_path}/out/stress.png'
    return Script(stress_test, tmp_path / 'ruler.pth', arguments)


def test_errors_of_a_net_that_measures_its_objects(tool, tmp_path, capsys):
    """16^2 of 56^2 pixels is 8 %, 24^2 18 %: half as large both look small, twice as large both look big."""
    tool('--factors', '2,0.5,1')
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        '| Err@1 (%) with objects F times as large | 0.5 | 1 | 2 |',
        '| --- | ---: | ---: | ---: |',
        '| ruler | 40.00 | 0.00 | 60.00 |',
    ]
    lines = [f'ruler, {factor}:  * Err@1 {error}.000' for factor, error in ((0.5, 40), (1, 0), (2, 60))]
    assert [line.split(' Err@5')[0] for line in told.err.splitlines()] == lines
    found = json.loads((tmp_path / 'out' / 'stress.json').read_text())
    assert (found['factors'], found['images'], found['image_size']) == ([0.5, 1, 2], 5, 56)
    assert (found['results']['ruler']['err1'], found['results']['ruler']['err5']) == ([40, 0, 60], [0, 0, 0])
    with Image.open(tmp_path / 'out' / 'stress.png') as picture:
        assert picture.size[0] > 500


def test_two_nets_share_a_table_and_the_nets_of_files_of_2019_are_said(tool, tmp_path, capsys):
    (tmp_path / 'old').mkdir()
    torch.save({'state_dict': Ruler(2).state_dict()}, tmp_path / 'old' / 'ruler.pth')
    two = Script(stress_test, tmp_path / 'old' / 'ruler.pth', ' '.join(tool.shared))
    two('--arch', 'ruler', '--arch', 'ruler')
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith(' | 0.5 | 0.71 | 1 | 1.41 | 2 |')
    names = [f'ruler ({name}ruler.pth)' for name in ('old/', '')]
    assert rows == [f'| {name} | 40.00 | 40.00 | 0.00 | 60.00 | 60.00 |' for name in names]
    assert list(json.loads((tmp_path / 'out' / 'stress.json').read_text())['results']) == names
    assert '--arch is given 1 times for 2 checkpoints' in two.error(capsys, '--arch', 'ruler')


def test_mistakes_are_one_line_and_leave_nothing(tool, tmp_path, capsys):
    for factors in '0', '-1', '1,x', 'nan', 'inf', '':
        assert '--factors' in tool.error(capsys, f'--factors={factors}')
    assert 'cannot write' in tool.error(capsys, '--out', tmp_path / 'ruler.pth' / 'stress.png')
    (tmp_path / 'data' / 'val' / '1_big').rename(tmp_path / 'data' / 'val' / '1_huge')
    assert 'its classes differ: 1_big where the data has 1_huge' in tool.error(capsys)
    assert not list(tmp_path.glob('out/*'))


@pytest.mark.parametrize('name', ['stress.png', 'stress.json'])
def test_picture_and_numbers_are_written_both_or_neither(tmp_path, monkeypatch, name):
    write_bytes = Path.write_bytes

    def on_a_full_disk(path, content):
        if name in path.name:
            raise OSError(28, 'No space left on device')
        return write_bytes(path, content)

    monkeypatch.setattr(Path, 'write_bytes', on_a_full_disk)
    with pytest.raises(UserError, match=f'cannot write .*{name}: No space left on device'):
        write_results(Figure(), {}, tmp_path / 'stress.png')
    assert not list(tmp_path.iterdir())
