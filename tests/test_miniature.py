"""The miniature comparison: its pair of nets, its pictures, its errors by size, its runs and its report."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from data import scaled_objects, scenes
from data.scaled_objects import (
    FACTORS,
    SHAPE_SIZES,
    THIRDS,
    Target,
    draw_cells,
    jitter,
    jittered_photos,
    shapes,
    third_of,
)
from data.scenes import CLASS_NAMES
from tests.conftest import Script, TinyNet
from tests.test_fashion_mnist import write_idx
from tools import miniature
from tools.miniature import Recipe
from utils.comparison import cell, draw, spread, table
from utils.errors import UserError, exit_cleanly
from utils.scale_errors import ScaleErrors

BUILD = miniature.build
# One pass over 32 shapes, two over 16 photos.
QUICK = Recipe(updates=4, batch_size=8, train=(32, 16), test=(16, 20))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Fashion-MNIST's four files, of 40 white photos each."""
    folder = tmp_path_factory.mktemp('fashion')
    for name in ('train', 't10k'):
        write_idx(folder / f'{name}-images-idx3-ubyte.gz', np.full((40, 28, 28), 255, np.uint8))
        write_idx(folder / f'{name}-labels-idx1-ubyte.gz', np.arange(40, dtype=np.uint8) % 10)
    return folder


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """The first 48 shapes of each part, and their folder."""
    folder = tmp_path_factory.mktemp('shapes')
    return folder, {part: shapes(folder, 0, part, 48, 1) for part in ('train', 'val')}


@pytest.mark.parametrize('classes', [8, 10])
def test_the_nets_cost_the_same(classes):
    base, elastic = miniature.costs(classes).values()
    for of_base, of_elastic in zip(base, elastic, strict=True):
        assert 0.96 < of_elastic / of_base < 1.01


def test_the_block_counts_follow_the_papers_rule():
    """(3, 4, 6, 3) becomes (6, 8, 5, 3): the first two doubled, one fewer in the third, the last as it is."""
    first, second, third, fourth = miniature.DEPTHS['base']
    assert miniature.DEPTHS['elastic'] == (2 * first, 2 * second, third - 1, fourth)
    assert not any(block.elastic for block in miniature.build('base', 8).blocks())
    assert [block.elastic for block in miniature.build('elastic', 8).blocks()] == [
        True, True, False, True, True, True, False, True, False
    ]  # fmt: skip


def test_the_updates_fill_whole_epochs():
    recipe = miniature.RECIPE
    for pictures in recipe.train:
        assert pictures % recipe.batch_size == 0
        assert recipe.epochs(pictures) * pictures == recipe.updates * recipe.batch_size


def test_shapes_are_drawn_from_seed_part_and_number(drawn, tmp_path):
    folder, sets = drawn
    longer = shapes(tmp_path, 0, 'train', 52, 1)
    other = shapes(tmp_path, 1, 'train', 8, 1)
    assert np.array_equal(longer.pictures[:48], sets['train'].pictures)
    assert np.array_equal(longer.sizes[:48], sets['train'].sizes)
    assert not np.isin(sets['train'].sizes, sets['val'].sizes).any()
    assert not np.isin(other.sizes, sets['train'].sizes).any()


def test_shapes_are_read_from_the_cache(drawn, monkeypatch):
    folder, sets = drawn
    monkeypatch.setattr(scaled_objects, 'draw_cells', None)
    assert np.array_equal(shapes(folder, 0, 'val', 48, 1).pictures, sets['val'].pictures)


def test_every_shape_is_as_often_as_the_others(drawn):
    assert np.bincount(drawn[1]['train'].labels).tolist() == [6] * len(CLASS_NAMES)


def test_shapes_look_as_large_as_they_are_said_to_be(monkeypatch):
    """White squares on black, not turned: what is bright is as wide as the size says."""
    monkeypatch.setattr(scenes, '_background', lambda rng: np.zeros((scenes.SCENE, scenes.SCENE, 3), np.float32))
    monkeypatch.setattr(scenes, '_clutter', lambda rng, canvas: canvas)
    monkeypatch.setattr(scenes, '_fill', lambda rng, texture, hue, points: np.float32(1))
    monkeypatch.setattr(scenes, 'MAX_TURN', 0)
    monkeypatch.setattr(scenes, 'CLASSES', dict.fromkeys(CLASS_NAMES, scenes.CLASSES['dotted_square']))
    for number in range(4):
        pictures, _, sizes = draw_cells(0, 'train', number)
        for picture, size in zip(pictures, sizes, strict=True):
            _, rows, columns = np.nonzero(picture > 127)
            assert np.ptp(rows) + 1 == pytest.approx(size, abs=1.5)
            assert np.ptp(columns) + 1 == pytest.approx(size, abs=1.5)


def test_shapes_take_the_whole_range_of_sizes(drawn):
    """Log-uniform: 96 of them are at most 5 standard deviations (23) from 32 in each third."""
    low, high = SHAPE_SIZES
    assert (low, high) == (7.5, 45)
    sizes = np.concatenate([part.sizes for part in drawn[1].values()])
    assert sizes.min() >= low - 1e-6 and sizes.max() <= high + 1e-6
    counts = np.bincount([third_of(size, SHAPE_SIZES) for size in sizes], minlength=3)
    assert (abs(counts - 32) < 23).all()


def test_photos_are_drawn_from_seed_part_and_number(source):
    few, more = (jittered_photos(source, 0, 'train', count) for count in (10, 20))
    assert np.array_equal(few.pictures, more.pictures[:10])
    photo = np.full((28, 28), 255, np.uint8)
    assert np.array_equal(jitter(0, 'train', 3, photo)[0], few.pictures[3, 0])
    for others in (jitter(1, 'train', 3, photo), jitter(0, 'val', 3, photo), jitter(0, 'train', 4, photo)):
        assert others[1] != few.sizes[3]
    assert few.labels.tolist() == list(range(10))


def test_photos_look_as_large_as_they_are_said_to_be(source):
    photos = jittered_photos(source, 0, 'train', 40)
    for picture, size in zip(photos.pictures[:, 0], photos.sizes, strict=True):
        rows, columns = np.nonzero(picture > 150)
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == round(size)
        assert len(rows) == round(size) ** 2


def test_photos_are_scaled_log_uniformly_and_lie_everywhere():
    found = [jitter(0, 'val', number, np.full((28, 28), 255, np.uint8)) for number in range(600)]
    logs = np.log([size / 28 for _, size in found])
    low, high = np.log(FACTORS)
    assert logs.min() >= low and logs.max() <= high
    counts, _ = np.histogram(logs, bins=6, range=(low, high))
    assert (abs(counts - 100) < 40).all()  # 4 standard deviations
    small = [np.argwhere(picture > 150).mean(0) for picture, size in found if size < 14]
    assert np.min(small) < 8 and np.max(small) > 39
    assert np.array(small).mean() == pytest.approx(23.5, abs=2)


def test_thirds_are_equal_parts_of_the_logarithm():
    sizes = [10, 19.9, 20.1, 39.9, 40.1, 80]
    assert [third_of(size, (10, 80)) for size in sizes] == [0, 0, 1, 1, 2, 2]


def test_a_sample_is_a_picture_with_class_and_third(drawn):
    train = drawn[1]['train']
    picture, target = train[5]
    assert picture.shape == (3, 48, 48) and picture.dtype == torch.uint8
    assert (int(target.label), int(target.third)) == (train.labels[5], third_of(train.sizes[5], SHAPE_SIZES))
    upside_down = replace(train, transform=lambda pixels: pixels.flip(1))
    assert torch.equal(upside_down[5][0], picture.flip(1))


def test_errors_by_size_add_up():
    torch.manual_seed(0)
    errors = ScaleErrors(torch.device('cpu'))
    outputs, labels, thirds = torch.randn(50, 8), torch.randint(8, (50,)), torch.randint(3, (50,))
    for part in (slice(0, 32), slice(32, 50)):
        errors.update(torch.tensor(1.0), outputs[part], Target(labels[part], thirds[part]))
    found, wrong = errors.compute(), outputs.argmax(1) != labels
    assert found['err1'] == pytest.approx(2 * wrong.sum().item())
    for number, name in enumerate(THIRDS):
        assert found[name] == pytest.approx(100 * wrong[thirds == number].double().mean().item())
    weighted = sum(found[name] * found['pictures'][name] for name in THIRDS)
    assert weighted / 50 == pytest.approx(found['err1'])
    resumed = ScaleErrors(torch.device('cpu'))
    resumed.load_state_dict(errors.state_dict())
    assert resumed.compute() == found


@pytest.fixture
def quick(monkeypatch, source, tmp_path):
    """The tool with a handful of updates of a tiny net; it draws in this process."""
    monkeypatch.setattr(miniature, 'build', lambda net, num_classes: TinyNet(num_classes))
    monkeypatch.setattr(miniature, 'available_cores', lambda: 1)
    monkeypatch.setattr(miniature, 'RECIPE', QUICK)
    return Script(miniature, '--device', f'cpu --output {tmp_path}/out --source {source}')


def test_runs_are_noted_and_not_repeated(quick, tmp_path, capsys, monkeypatch):
    quick('--seeds', '0')
    printed, out = capsys.readouterr().out, tmp_path / 'out'
    folders = sorted(path.parent.name for path in out.glob('*/result.json'))
    assert folders == ['photos_base_0', 'photos_elastic_0', 'shapes_base_0', 'shapes_elastic_0']
    assert not list(out.rglob('*.pth.tar'))
    assert (out / 'miniature.md').read_text() == printed
    noted = json.loads((out / 'miniature.json').read_text())
    assert noted['recipe']['updates'] == QUICK.updates
    assert noted['results'] == [
        json.loads((out / name / 'result.json').read_text())
        for name in ('shapes_base_0', 'shapes_elastic_0', 'photos_base_0', 'photos_elastic_0')
    ]
    assert [sum(result['pictures'].values()) for result in noted['results']] == [16, 16, 20, 20]
    epochs = [json.loads(line) for line in (out / 'shapes_base_0' / 'log.jsonl').read_text().splitlines()][1:]
    assert len(epochs) == 1
    monkeypatch.setattr(miniature, 'fit', None)
    quick('--seeds', '0')
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(miniature, 'RECIPE', replace(QUICK, lr=0.1))
    assert 'another recipe' in quick.error(capsys, '--seeds', '0')


def test_a_table_that_cannot_be_written(quick, tmp_path, capsys):
    table = tmp_path / 'out' / 'miniature.md'
    table.mkdir(parents=True)
    assert quick.error(capsys, '--seeds', '0') == f'error: cannot write {table}: it is a folder'
    with pytest.raises(UserError, match=f'cannot write {table}: '):
        miniature.report(THREE, QUICK, miniature.Compute('cpu'), table.with_suffix('.png'))


def test_a_run_that_was_cut_off_goes_on(quick, tmp_path, monkeypatch, capsys):
    """Cut off at the test, it does not train again, and comes to what a run in one piece comes to."""
    quick('--seeds', '3')
    straight = json.loads((tmp_path / 'out' / 'shapes_base_3' / 'result.json').read_text())
    (tmp_path / 'out').rename(tmp_path / 'straight')
    with monkeypatch.context() as patch:
        patch.setattr(miniature, 'evaluate', cut_off)
        assert 'cut off' in last_line(quick, capsys)
    assert [path.parent.name for path in (tmp_path / 'out').rglob('*.pth.tar')] == ['shapes_base_3']
    monkeypatch.setattr(TinyNet, 'train', no_training)
    assert 'trained again' in last_line(quick, capsys)  # the next net, not this one
    resumed = json.loads((tmp_path / 'out' / 'shapes_base_3' / 'result.json').read_text())
    assert {**resumed, 'seconds': 0} == {**straight, 'seconds': 0}


def cut_off(*_):
    raise UserError('cut off')


def no_training(net, mode=True):
    if mode:
        raise UserError('trained again')
    return nn.Module.train(net, mode)


def last_line(script, capsys) -> str:
    """With what a call ends on stderr, behind the progress of the runs."""
    with pytest.raises(SystemExit) as end:
        exit_cleanly(lambda: script('--seeds', '3'))
    assert end.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_without_fashion_mnist_a_line_says_so(quick, tmp_path, capsys, monkeypatch):
    """With the nets themselves, which learn something else from one and the same seed."""
    monkeypatch.setattr(miniature, 'build', BUILD)
    quick('--seeds', '0', '--source', tmp_path / 'nowhere')
    told = capsys.readouterr()
    assert f'no folder {tmp_path}/nowhere: Fashion-MNIST is left out' in told.err
    rows = [line.split(' | ') for line in told.out.splitlines()[2:]]
    assert [row[:4] for row in rows] == [['| shapes', 'base', '1', '4.59'], ['| shapes', 'elastic', '1', '4.47']]
    losses = [json.loads(path.read_text())['loss'] for path in (tmp_path / 'out').glob('*/result.json')]
    assert len(losses) == len(set(losses)) == 2


@pytest.mark.parametrize('seeds', ['', '0,0', '-1', '1.5', 'x'])
def test_wrong_seeds(capsys, seeds):
    assert '--seeds' in Script(miniature, f'--seeds={seeds}').error(capsys)


def results_of(net: str, errors: list[float | None]) -> list[dict]:
    """A run per error; the thirds' errors are 10 below, 0 and 10 above it."""
    return [
        {'data': 'shapes', 'net': net, 'seed': seed, 'err1': error, 'small': error - 10, 'medium': error,
         'large': error + 10}
        for seed, error in enumerate(errors)
    ]  # fmt: skip


THREE = results_of('base', [30, 32, 37]) + results_of('elastic', [29, 29, 29])
COSTS = {'shapes': {'base': (4_590_000, 47_000_000), 'elastic': (4_470_000, 46_900_000)}}


def test_mean_and_standard_deviation():
    """(30, 32, 37): mean 33, squares of the differences 9 + 1 + 16, over 2: 13."""
    assert spread([30, 32, 37]) == (33, pytest.approx(13**0.5))
    assert spread([30])[0] == 30
    assert (cell([30, 32, 37]), cell([30]), cell([])) == ('33.00 ± 3.61', '30.00', '')


def test_table_of_given_results():
    header, _, base, elastic = table(THREE, COSTS).splitlines()
    assert header.split(' | ')[-4:] == [f'error, {name} (%)' for name in ('all', 'small', 'medium')] + [
        'error, large (%) |'
    ]
    assert base == '| shapes | base | 3 | 4.59 | 0.0470 | 33.00 ± 3.61 | 23.00 ± 3.61 | 33.00 ± 3.61 | 43.00 ± 3.61 |'
    assert elastic.startswith('| shapes | elastic | 3 | 4.47 | 0.0469 | 29.00 ± 0.00 | 19.00 ± 0.00 |')


def test_plot_of_given_results():
    (panel,) = draw(THREE).axes
    bars = {container.get_label(): container for container in panel.containers}
    assert list(bars) == ['base', 'elastic']
    points, _, (lines,) = bars['base']
    assert points.get_ydata().tolist() == pytest.approx([33, 23, 33, 43])
    low, high = lines.get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(33 - 13**0.5), pytest.approx(33 + 13**0.5))
    dots = [sorted(line.get_ydata()) for line in panel.lines if line.get_marker() == '.']
    assert dots[0] == [30, 32, 37] and len(dots) == 8


def test_a_third_without_pictures_is_left_out():
    lacking = [{**result, 'small': None} for result in THREE]
    assert table(lacking, COSTS).splitlines()[2].split(' | ')[6] == ''
    points, *_ = draw(lacking).axes[0].containers[0]
    assert points.get_ydata().tolist() == pytest.approx([33, 33, 43])
