"""The miniature comparison: pictures whose size is known, errors by size, the pair of nets, its runs and its report."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from data import scenes
from data.scenes import CLASS_NAMES
from tests.conftest import Script, TinyNet
from tests.pictures import write_fashion
from tests.runs import epochs
from tools.miniature import __main__ as miniature
from tools.miniature import data as scaled_objects
from tools.miniature.__main__ import Recipe
from tools.miniature.data import FACTORS, SHAPE_SIZES, THIRDS, jitter, jittered_photos, shapes, third_of
from tools.miniature.report import ScaleError, cell, draw, spread, table

WHITE = np.full((28, 28), 255, np.uint8)
# One pass over 32 shapes, two over 16 photos.
QUICK = Recipe(updates=4, batch_size=8, train=(32, 16), test=(16, 20))


@pytest.fixture(scope='module')
def fashion(tmp_path_factory):
    """Fashion-MNIST's four files, of 40 white photos each."""
    white = np.stack([WHITE] * 40)
    return write_fashion(tmp_path_factory.mktemp('fashion'), white, white)


def test_shapes_are_drawn_from_seed_part_and_number_and_kept(tmp_path, monkeypatch):
    train, val = (shapes(tmp_path, 0, part, 48, 1) for part in ('train', 'val'))
    longer = shapes(tmp_path, 0, 'train', 52, 1)
    assert np.array_equal(longer.pictures[:48], train.pictures)
    assert np.array_equal(longer.sizes[:48], train.sizes)
    for other in val, shapes(tmp_path, 1, 'train', 8, 1):
        assert not np.isin(other.sizes, train.sizes).any()
    assert np.bincount(train.labels).tolist() == [6] * len(CLASS_NAMES)
    assert 7.5 <= train.sizes.min() < 9 and 38 < train.sizes.max() <= 45
    assert SHAPE_SIZES == (7.5, 45)
    monkeypatch.setattr(scaled_objects, 'draw_cells', None)
    assert np.array_equal(shapes(tmp_path, 0, 'val', 48, 1).pictures, val.pictures)
    picture, target = train[5]
    assert picture.shape == (3, 48, 48) and picture.dtype == torch.uint8
    assert tuple(target.tolist()) == (train.labels[5], third_of(train.sizes[5], SHAPE_SIZES))
    assert torch.equal(replace(train, transform=lambda pixels: pixels.flip(1))[5][0], picture.flip(1))


def test_shapes_look_as_large_as_they_are_said_to_be(tmp_path, monkeypatch):
    """Drawn as their masks, which have a border of 0.375 pixels: the longer side is as the size says."""

    def masks(*args):
        scene = scenes.render_scene(*args)
        return scene._replace(picture=np.stack([(scene.mask > 0) * np.uint8(255)] * 3, 2))

    monkeypatch.setattr(scaled_objects, 'render_scene', masks)
    found = shapes(tmp_path, 0, 'train', 16, 1)
    for picture, size in zip(found.pictures, found.sizes, strict=True):
        _, *places = np.nonzero(picture > 127)
        assert max(np.ptp(place) + 1 for place in places) == pytest.approx(size + 0.75, abs=1.5)


def test_photos_are_drawn_from_seed_part_and_number_as_large_as_they_are_said_to_be(fashion):
    few, photos = (jittered_photos(fashion, 0, 'train', count) for count in (10, 40))
    assert np.array_equal(few.pictures, photos.pictures[:10])
    assert few.labels.tolist() == list(range(10))
    assert np.array_equal(jitter(0, 'train', 3, WHITE)[0], few.pictures[3, 0])
    for others in (1, 'train', 3), (0, 'val', 3), (0, 'train', 4):
        assert jitter(*others, WHITE)[1] != few.sizes[3]
    for picture, size in zip(photos.pictures[:, 0], photos.sizes, strict=True):
        rows, columns = np.nonzero(picture > 150)
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == round(size)
        assert len(rows) == round(size) ** 2
    sizes = [jitter(0, 'val', number, WHITE)[1] / 28 for number in range(600)]
    counts, _ = np.histogram(np.log(sizes), bins=6, range=np.log(FACTORS))
    assert counts.sum() == 600 and (abs(counts - 100) < 40).all()  # 4 standard deviations


def test_errors_by_size_add_up():
    """A third of the logarithm's range each."""
    assert [third_of(size, (10, 80)) for size in (10, 19.9, 20.1, 39.9, 40.1, 80)] == [0, 0, 1, 1, 2, 2]
    errors, resumed = (ScaleError(torch.device('cpu')) for _ in range(2))
    torch.manual_seed(0)
    outputs, labels, thirds = torch.randn(50, 8), torch.randint(8, (50,)), torch.randint(3, (50,))
    for part in (slice(0, 32), slice(32, 50)):
        errors.update(torch.tensor(1.0), outputs[part], torch.stack([labels[part], thirds[part]], 1))
    found, wrong = errors.compute(), outputs.argmax(1) != labels
    assert found['err1'] == pytest.approx(2 * wrong.sum().item())
    assert list(found['pictures'].values()) == thirds.bincount().tolist()
    for number, name in enumerate(THIRDS):
        assert found[name] == pytest.approx(100 * wrong[thirds == number].double().mean().item())
    resumed.load_state_dict(errors.state_dict())
    assert resumed.compute() == found


def test_the_nets_cost_the_same_and_differ_as_in_the_paper_and_all_updates_are_done():
    """(3, 4, 6, 3) becomes (6, 8, 5, 3): the first two doubled, one fewer in the third, the last as it is."""
    first, second, third, fourth = miniature.DEPTHS['base']
    assert miniature.DEPTHS['elastic'] == (2 * first, 2 * second, third - 1, fourth)
    assert not any(block.elastic for block in miniature.build('base', 8).blocks())
    elastic = [block.elastic for block in miniature.build('elastic', 8).blocks()]
    assert elastic == [True, True, False, True, True, True, False, True, False]
    costs = miniature.costs(8)
    assert [round(parameters / 1e6, 2) for parameters, _ in costs.values()] == [4.59, 4.47]
    assert 0.96 < costs['elastic'][1] / costs['base'][1] < 1.01
    for pictures in miniature.RECIPE.train:  # fill whole epochs
        assert pictures % miniature.RECIPE.batch_size == 0
        assert miniature.RECIPE.epochs(pictures) * pictures == miniature.RECIPE.updates * miniature.RECIPE.batch_size


@pytest.fixture
def quick(monkeypatch, fashion, tmp_path):
    """The tool with a handful of updates of a tiny net; it draws in this process."""
    monkeypatch.setattr(miniature, 'build', lambda net, num_classes: TinyNet(num_classes))
    monkeypatch.setattr(miniature, 'available_cores', lambda: 1)
    monkeypatch.setattr(miniature, 'RECIPE', QUICK)
    monkeypatch.setattr('utils.logger.draw_curves', lambda *_: None)  # which takes longer than the runs
    return Script(miniature, '--device', f'cpu --output {tmp_path}/out --source {fashion} --seeds 3')


def test_runs_are_noted_and_not_repeated_and_go_on_where_they_were_cut_off(quick, tmp_path, capsys, monkeypatch):
    quick()
    printed, out = capsys.readouterr().out, tmp_path / 'out'
    assert not list(out.rglob('*.pth.tar'))
    assert (out / 'miniature.md').read_text() == printed
    noted = json.loads((out / 'miniature.json').read_text())
    assert noted['recipe']['updates'] == QUICK.updates
    folders = [out / name for name in ('shapes_base_3', 'shapes_elastic_3', 'photos_base_3', 'photos_elastic_3')]
    assert noted['results'] == [json.loads((folder / 'result.json').read_text()) for folder in folders]
    assert [sum(result['pictures'].values()) for result in noted['results']] == [16, 16, 20, 20]
    assert [len(epochs(folder)) for folder in folders] == [2, 2, 3, 3]  # with the line that begins a run
    with monkeypatch.context() as patch:
        patch.setattr(miniature, 'Trainer', None)
        quick()
    assert capsys.readouterr().out == printed
    shutil.rmtree(folders[0])
    with monkeypatch.context() as patch, pytest.raises(TypeError):  # trained anew, but cut off at the test
        patch.setattr(miniature, 'evaluate', None)
        quick()
    assert [path.parent for path in out.rglob('*.pth.tar')] == folders[:1]
    quick('--source', tmp_path / 'nowhere')
    told = capsys.readouterr()
    assert f'no folder {tmp_path}/nowhere: Fashion-MNIST is left out' in told.err
    assert [row[:18] for row in told.out.splitlines()[2:]] == ['| shapes | base | ', '| shapes | elastic']
    assert sum('epoch' in record for record in epochs(folders[0])) == 1  # it was not trained again
    again = json.loads((folders[0] / 'result.json').read_text())
    assert again | {'seconds': 0} == noted['results'][0] | {'seconds': 0}
    monkeypatch.setattr(miniature, 'RECIPE', replace(QUICK, lr=0.1))
    assert 'another recipe' in quick.error(capsys)


def test_wrong_seeds_and_a_table_that_cannot_be_written(quick, tmp_path, capsys):
    for seeds in '', '0,0', '-1', '1.5', 'x':
        assert '--seeds' in quick.error(capsys, f'--seeds={seeds}')
    (tmp_path / 'out' / 'miniature.md').mkdir(parents=True)
    assert quick.error(capsys) == f'error: cannot write {tmp_path}/out/miniature.md: it is a folder'


THREE = [  # the thirds' errors are 10 below, 0 and 10 above that of all
    {'data': 'shapes', 'net': net, 'seed': seed, 'err1': all_, 'small': all_ - 10, 'medium': all_, 'large': all_ + 10}
    for net, errors in (('base', [30, 32, 37]), ('elastic', [29, 29, 29]))
    for seed, all_ in enumerate(errors)
]
COSTS = {'shapes': {'base': (4_590_000, 47_000_000), 'elastic': (4_470_000, 46_900_000)}}


def test_table_and_plot_of_given_results():
    """(30, 32, 37): mean 33, squares of the differences 9 + 1 + 16, over 2: 13."""
    assert spread([30, 32, 37]) == (33, pytest.approx(13**0.5))
    assert (cell([30, 32, 37]), cell([30]), cell([])) == ('33.00 ± 3.61', '30.00', '')
    header, _, *rows = table(THREE, COSTS).splitlines()
    assert header.endswith(' | error, all (%) | error, small (%) | error, medium (%) | error, large (%) |')
    assert rows == [
        '| shapes | base | 3 | 4.59 | 0.0470 | 33.00 ± 3.61 | 23.00 ± 3.61 | 33.00 ± 3.61 | 43.00 ± 3.61 |',
        '| shapes | elastic | 3 | 4.47 | 0.0469 | 29.00 ± 0.00 | 19.00 ± 0.00 | 29.00 ± 0.00 | 39.00 ± 0.00 |',
    ]
    (panel,) = draw([result | {'small': None} for result in THREE]).axes  # a third without pictures is left out
    points, _, (lines,) = panel.containers[0]
    assert points.get_ydata().tolist() == pytest.approx([33, 33, 43])
    assert lines.get_segments()[0][:, 1].tolist() == pytest.approx([33 - 13**0.5, 33 + 13**0.5])
