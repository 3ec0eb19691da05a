"""The stress test: pictures at other scales, and the errors of nets whose answers are known."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import models
from tests.conftest import Script
from tools import stress_test
from utils import checkpoint
from utils.batches import EvalBatches
from utils.compute import Compute
from utils.data import DeviceLoader
from utils.errors import UserError
from utils.image_folder import central_crop, scaled_crop
from utils.output import write_results

LAST = 'tiny_checkpoint.pth.tar'


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize('size', [32, 33, 224])
@pytest.mark.parametrize('shape', [(40, 48), (61, 35), (300, 20), (224, 224)])
def test_at_factor_one_it_is_the_usual_crop(size, shape):
    picture = noise(*shape)
    pixels = scaled_crop(size, 1)(picture)
    assert torch.equal(pixels[:3], central_crop(size)(picture))
    assert pixels.shape == (4, size, size) and pixels[3:].all()


@pytest.mark.parametrize('factor', [0.25, 0.5, 0.75, 1.5, 3])
def test_an_object_grows_by_the_factor(factor):
    """A white square of a quarter of the picture's width, which is 64 pixels as the usual test resizes it."""
    pixels = np.zeros((128, 160, 3), np.uint8)
    pixels[48:80, 64:96] = 255
    seen = scaled_crop(56, factor)(Image.fromarray(pixels))
    width = seen[0, 28].sum().item() / 255
    assert width == pytest.approx(min(16 * factor, 56), abs=0.3)
    inside = seen[3].bool()
    rows, columns = (inside.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    assert (len(rows), len(columns)) == (min(round(64 * factor), 56), min(round(80 * factor), 56))
    assert inside.sum() == len(rows) * len(columns)
    assert all(abs(56 - 1 - first - last) <= 1 for first, *_, last in (rows, columns))


def test_around_a_small_picture_is_the_mean_colour():
    sample = scaled_crop(64, 0.5)(noise(40, 40)), 0
    ((images, _),) = DeviceLoader([sample], EvalBatches([range(1)], 1), Compute('cpu'), 0)
    inside = sample[0][3].bool()
    assert 0 < inside.sum() < 64 * 64
    assert (images[0][:, ~inside] == 0).all()
    assert (images[0][:, inside] != 0).all()


class Ruler(nn.Module):
    """Says class 1, `big`, where more than a tenth of the picture is white. Its head is of no use."""

    heads = ('fc',)

    def __init__(self, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(1, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        white = (x.amin(1) > 2).double().mean((1, 2))
        return torch.stack([0.1 - white, white - 0.1], 1)


@pytest.fixture
def ruler(tmp_path, monkeypatch):
    """Dark pictures of 64 pixels with a white square of 16 (small) or 24 (big) pixels in the middle, and a Ruler."""
    monkeypatch.setitem(models.classifiers, 'ruler', Ruler)
    for label, side, count in (('0_small', 16, 3), ('1_big', 24, 2)):
        folder = tmp_path / 'data' / 'val' / label
        folder.mkdir(parents=True)
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[32 - side // 2 : 32 + side // 2, 32 - side // 2 : 32 + side // 2] = 255
        for number in range(count):
            Image.fromarray(pixels).save(folder / f'{number}.png')
    content = {'arch': 'ruler', 'task': 'imagenet', 'classes': ['0_small', '1_big']}
    checkpoint.write({**content, 'state_dict': Ruler(2).state_dict()}, tmp_path / 'ruler.pth.tar')
    return Script(stress_test, tmp_path / 'ruler.pth.tar', f'{tmp_path}/data --image-size 56 --device cpu')


def test_errors_of_a_net_that_measures_its_objects(ruler, tmp_path, capsys):
    """16^2 of 56^2 pixels is 8 %, 24^2 18 %: half as large both look small, twice as large both look big."""
    ruler('--factors', '2,0.5,1', '--out', tmp_path / 'out' / 'stress.png', '-b', 2)
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        '| Err@1 (%) with objects F times as large | 0.5 | 1 | 2 |',
        '| --- | ---: | ---: | ---: |',
        '| ruler | 40.00 | 0.00 | 60.00 |',
    ]
    assert [line.split(' Err@5')[0] for line in told.err.splitlines()] == [
        'ruler, 0.5:  * Err@1 40.000', 'ruler, 1:  * Err@1 0.000', 'ruler, 2:  * Err@1 60.000'
    ]  # fmt: skip
    found = json.loads((tmp_path / 'out' / 'stress.json').read_text())
    assert (found['factors'], found['images'], found['image_size']) == ([0.5, 1, 2], 5, 56)
    assert found['results']['ruler']['err1'] == [40, 0, 60]
    assert found['results']['ruler']['err5'] == [0, 0, 0]
    with Image.open(tmp_path / 'out' / 'stress.png') as picture:
        assert picture.size[0] > 500


@pytest.fixture
def trained(classify, tmp_path):
    """A checkpoint of classify.py."""
    classify('--output', tmp_path / 'run', '--epochs', 1)
    return tmp_path / 'run' / LAST


@pytest.fixture
def tool(trained, folder, tmp_path):
    """The tool on this checkpoint."""
    return Script(stress_test, trained, f'{folder} --image-size 32 --device cpu --out {tmp_path}/out/stress.png')


def test_at_factor_one_the_error_is_what_evaluation_prints(tool, classify, trained, tmp_path, capsys):
    tool()
    capsys.readouterr()
    classify('--evaluate', '--resume', trained)
    printed = re.search(r' \* Err@1 (\S+) Err@5 (\S+)', capsys.readouterr().out).groups()
    found = json.loads((tmp_path / 'out' / 'stress.json').read_text())
    curves, place = found['results']['tiny'], found['factors'].index(1)
    assert found['factors'] == [0.5, 0.71, 1, 1.41, 2]
    assert (f'{curves["err1"][place]:.3f}', f'{curves["err5"][place]:.3f}') == printed
    assert len({*curves['loss']}) == 5


def test_two_checkpoints_share_a_table_and_a_plot(tool, trained, folder, tmp_path, capsys):
    other = trained.with_name('model_best.pth.tar')
    two = Script(stress_test, other, ' '.join(map(str, tool.shared)))
    two('--factors', 1)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(' | ')[0] for row in rows[-2:]] == [f'| tiny ({path.name})' for path in (other, trained)]
    assert len(json.loads((tmp_path / 'out' / 'stress.json').read_text())['results']) == 2


def test_names_tell_checkpoints_of_one_net_apart(tmp_path):
    paths = [tmp_path / 'a' / 'best.pth', tmp_path / 'b' / 'best.pth', tmp_path / 'c' / 'd' / 'last.pth']
    assert stress_test.names_of(['x', 'x', 'y'], paths) == ['x (a/best.pth)', 'x (b/best.pth)', 'y']
    assert stress_test.names_of(['x'], paths[:1]) == ['x']


def test_a_file_of_2019_is_known_by_its_tensors(tool, trained, tmp_path, capsys):
    tool('--factors', 1)
    named = capsys.readouterr().out
    torch.save({'state_dict': checkpoint.read(trained).state_dict}, trained)
    tool('--factors', 1)
    assert capsys.readouterr().out == named[named.index('| Err@1') :]
    assert '--arch is given 2 times for 1 checkpoints' in tool.error(capsys, *2 * ['--arch', 'tiny'])
    tool('--factors', 1, '--arch', 'tiny')
    assert capsys.readouterr().out == named[named.index('| Err@1') :]


@pytest.mark.parametrize('factors', ['0', '-1', '1,x', 'nan', 'inf', ''])
def test_wrong_factors(capsys, factors):
    assert '--factors' in Script(stress_test, 'checkpoint', 'folder').error(capsys, f'--factors={factors}')


def test_mistakes_are_one_line_and_leave_nothing(tool, trained, folder, tmp_path, capsys):
    assert '--out' in tool.error(capsys, '--out', tmp_path / 'stress.jpg')
    assert 'cannot write' in tool.error(capsys, '--out', trained / 'stress.png')
    (folder / 'val' / 'fox' / '2.png').write_bytes(b'')
    assert 'fox/2.png' in tool.error(capsys)
    (folder / 'val' / 'fox').rename(folder / 'val' / 'gnu')
    assert 'its classes differ: fox where the data has gnu' in tool.error(capsys)
    (folder / 'val').rename(folder / 'test')
    assert 'no folder' in tool.error(capsys)
    trained.unlink()
    (folder / 'test').rename(folder / 'val')
    assert 'no checkpoint at' in tool.error(capsys)
    assert not list(tmp_path.glob('out/*'))


@pytest.mark.parametrize('name', ['stress.png', 'stress.json'])
def test_picture_and_numbers_are_written_both_or_neither(ruler, tmp_path, capsys, monkeypatch, name):
    out = tmp_path / 'out'
    (out / name).mkdir(parents=True)
    assert f'{name}: it is a folder' in ruler.error(capsys, '--out', out / 'stress.png')
    (out / name).rmdir()
    write_bytes = Path.write_bytes

    def on_a_full_disk(path, content):
        if name in path.name:
            raise OSError(28, 'No space left on device')
        return write_bytes(path, content)

    monkeypatch.setattr(Path, 'write_bytes', on_a_full_disk)
    with pytest.raises(UserError, match=f'cannot write .*{name}: No space left on device'):
        write_results(Figure(), {}, out / 'stress.png')
    assert not list(out.iterdir())
