"""tools/input_speed.py, tiny: the loaders are measured, a set is made, indexed once and found again, all goes away."""

import json
import tempfile

import pytest

from tests.conftest import Script
from tools import input_speed as script
from utils.errors import UserError, exit_cleanly


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """The tool, with all that is temporary in tmp_path/scratch."""
    (tmp_path / 'scratch').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'scratch'))
    yield Script(script, '--rounds', f'2 --pictures 3 --json {tmp_path / "speed.json"}')
    assert not list((tmp_path / 'scratch').iterdir())


def test_loaders_are_measured_by_workers(measure, tmp_path, capsys):
    measure('--images', 40, '--workers', 0, 1)
    noted = json.loads((tmp_path / 'speed.json').read_text())
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ['workers', 'loader', 'images/s', '(range)', 'ratio']
    assert [row.split()[0] for row in rows] == 3 * ['0'] + 3 * ['1']
    for ways in noted['images_per_second'].values():
        assert [len(rates) for rates in ways.values()] == [2, 2, 2]
        assert all(rate > 1 for rates in ways.values() for rate in rates)


def test_epoch_holds_all_images(tmp_path):
    script.link_pictures(script.draw_pictures(tmp_path, 2), tmp_path / 'train', 8, 5)
    assert [run() for run in script.loaders(tmp_path / 'train', 0).values()] == [40, 40, 40]


def test_startup_of_a_set_that_is_made(measure, tmp_path, capsys, monkeypatch):
    launched = []
    monkeypatch.setattr(script, 'launch', lambda *given: launched.append(given) or dict.fromkeys(
        [*script.STAGES, 'total'], float(len(launched))))  # fmt: skip
    measure('--startup', '--classes', 3, '--per-class', 7)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '21 training images in 3 classes'
    assert [line.split()[:2] for line in lines[1:]] == [
        ['first', '1.00'], ['indexed', '2.00'], ['indexed', '3.00'], ['median', '2.50']]  # fmt: skip
    folder, environment = launched[0]
    assert environment['XDG_CACHE_HOME'] == folder
    noted = json.loads((tmp_path / 'speed.json').read_text())
    assert (noted['first']['total'], [each['total'] for each in noted['indexed']]) == (1, [2, 3])


def test_first_batch_of_a_named_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('MPLCONFIGDIR', script.matplotlib.get_cachedir())
    times = script.launch(str(folder), script.os.environ)
    assert times['total'] == pytest.approx(sum(times[stage] for stage in script.STAGES))
    assert all(0 < times[stage] < times['total'] for stage in script.STAGES)


def test_user_errors(tmp_path, capsys):
    with pytest.raises(UserError, match='^no folder .*nowhere/train$'):
        script.launch(str(tmp_path / 'nowhere'), script.os.environ)
    with pytest.raises(SystemExit):
        exit_cleanly(lambda: script.main(script.make_parser().parse_args(['--rounds', '0'])))
