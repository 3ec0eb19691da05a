"""The miniature comparison: its pair of nets, its runs and its report."""

import json
import shutil
from dataclasses import replace

import pytest

from tests.conftest import Script, TinyNet
from tests.runs import epochs
from tools import miniature
from tools.miniature import Recipe
from utils.comparison import cell, draw, spread, table

# One pass over 32 shapes, two over 16 photos.
QUICK = Recipe(updates=4, batch_size=8, train=(32, 16), test=(16, 20))


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
    monkeypatch.setattr('utils.reporting.draw_curves', lambda *_: None)  # which takes longer than the runs
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
        patch.setattr(miniature, 'fit', None)
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


def results_of(net: str, errors: list[float]) -> list[dict]:
    """A run per error; the thirds' errors are 10 below, 0 and 10 above it."""
    thirds = ('err1', 0), ('small', -10), ('medium', 0), ('large', 10)
    own = [{name: error + difference for name, difference in thirds} for error in errors]
    return [{'data': 'shapes', 'net': net, 'seed': seed, **errors} for seed, errors in enumerate(own)]


THREE = results_of('base', [30, 32, 37]) + results_of('elastic', [29, 29, 29])
COSTS = {'shapes': {'base': (4_590_000, 47_000_000), 'elastic': (4_470_000, 46_900_000)}}


def test_table_of_given_results():
    """(30, 32, 37): mean 33, squares of the differences 9 + 1 + 16, over 2: 13."""
    assert spread([30, 32, 37]) == (33, pytest.approx(13**0.5))
    assert (cell([30, 32, 37]), cell([30]), cell([])) == ('33.00 ± 3.61', '30.00', '')
    header, _, *rows = table(THREE, COSTS).splitlines()
    assert header.endswith(' | error, all (%) | error, small (%) | error, medium (%) | error, large (%) |')
    assert rows == [
        '| shapes | base | 3 | 4.59 | 0.0470 | 33.00 ± 3.61 | 23.00 ± 3.61 | 33.00 ± 3.61 | 43.00 ± 3.61 |',
        '| shapes | elastic | 3 | 4.47 | 0.0469 | 29.00 ± 0.00 | 19.00 ± 0.00 | 29.00 ± 0.00 | 39.00 ± 0.00 |',
    ]


@pytest.mark.parametrize('lacking, heights', [({}, [33, 23, 33, 43]), ({'small': None}, [33, 33, 43])])
def test_plot_of_given_results(lacking, heights):
    """A third without pictures is left out."""
    (panel,) = draw([result | lacking for result in THREE]).axes
    bars = {container.get_label(): container for container in panel.containers}
    assert list(bars) == ['base', 'elastic']
    points, _, (lines,) = bars['base']
    assert points.get_ydata().tolist() == pytest.approx(heights)
    assert lines.get_segments()[0][:, 1].tolist() == pytest.approx([33 - 13**0.5, 33 + 13**0.5])
    dots = [sorted(line.get_ydata()) for line in panel.lines if line.get_marker() == '.']
    assert dots[0] == [30, 32, 37] and len(dots) == 2 * len(heights)
