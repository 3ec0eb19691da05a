"""The miniature comparison: its pair of nets, its runs and its report."""

import json
from dataclasses import replace

import pytest
from torch import nn

from tests.conftest import Script, TinyNet
from tests.test_scaled_objects import source  # noqa: F401 - a fixture
from tools import miniature
from tools.miniature import Recipe
from utils.comparison import cell, draw, spread, table
from utils.errors import UserError, exit_cleanly

BUILD = miniature.build
# One pass over 32 shapes, two over 16 photos.
QUICK = Recipe(updates=4, batch_size=8, train=(32, 16), test=(16, 20))


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


@pytest.fixture
def quick(monkeypatch, source, tmp_path):  # noqa: F811 - the fixture
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
