"""tools/benchmark.py --input and --startup, tiny: loaders are measured, a set is made, indexed and found again."""

import json
import os
import tempfile

import matplotlib
import pytest

from data.drawn_photos import draw_pictures, link_pictures
from tests.conftest import Script
from tools import benchmark, first_batch
from utils import input_speed, startup_speed
from utils.errors import UserError


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """The tool, with all that is temporary in tmp_path/scratch."""
    (tmp_path / 'scratch').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'scratch'))
    yield Script(benchmark, '--rounds', f'2 --pictures 3 --json {tmp_path / "speed.json"}')
    assert not list((tmp_path / 'scratch').iterdir())


def rows_of(tmp_path):
    return json.loads((tmp_path / 'speed.json').read_text())['rows']


def test_loaders_are_measured_by_workers(measure, tmp_path, capsys):
    measure('--input', '--images', 40, '--workers', 0, 1)
    rows = rows_of(tmp_path)
    assert [row['workers'] for row in rows] == 3 * [0] + 3 * [1]
    for row in rows:
        assert 1 < row['lowest'] <= row['median'] <= row['highest']
    for row, first in zip(rows, 3 * [rows[0]] + 3 * [rows[3]], strict=True):
        assert row['times_torchvision'] == pytest.approx(row['median'] / first['median'])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(' | ')[:2] for line in lines[2:]] == [[f'| {row["workers"]}', row['loader']] for row in rows]


def test_epoch_holds_all_images(tmp_path):
    link_pictures(draw_pictures(tmp_path, 2), tmp_path / 'train', 8, 5)
    assert [run() for run in input_speed.loaders(tmp_path / 'train', 0).values()] == [40, 40, 40]


def test_startup_of_a_set_that_is_made(measure, tmp_path, capsys, monkeypatch):
    launched = []

    def launch(folder, environment):
        launched.append((len(list(os.scandir(f'{folder}/train/n00000002'))), folder, environment))
        return dict.fromkeys([*startup_speed.STAGES, 'total'], float(len(launched)))

    monkeypatch.setattr(benchmark, 'launch', launch)
    measure('--startup', '--classes', 3, '--per-class', 7)
    first, _, _, *rows, median = capsys.readouterr().out.splitlines()
    assert first == '21 training images in 3 classes'
    assert [row.split(' | ')[:2] for row in rows] == [
        ['| first', '1.00'], ['| again', '2.00'], ['| again', '3.00']]  # fmt: skip
    assert median == 'launched again: 2.50 s (2.00 to 3.00)'
    images, folder, environment = launched[0]
    assert (images, environment['XDG_CACHE_HOME']) == (7, folder)
    assert [row['total'] for row in rows_of(tmp_path)] == [1, 2, 3]


def test_first_batch_of_a_named_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('MPLCONFIGDIR', matplotlib.get_cachedir())
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    times = startup_speed.launch(folder, os.environ)
    assert times['total'] == pytest.approx(sum(times[stage] for stage in startup_speed.STAGES))
    assert all(0 < times[stage] < times['total'] for stage in startup_speed.STAGES)


def test_first_batch_is_told_in_the_order_of_its_stages(folder, capsys):
    Script(first_batch, folder)()
    moments = json.loads(capsys.readouterr().out)
    assert len(moments) == len(startup_speed.STAGES) and moments == sorted(moments)


def test_what_a_launch_complains_of_is_one_line(tmp_path):
    with pytest.raises(UserError, match='^no folder .*nowhere/train$'):
        startup_speed.launch(tmp_path / 'nowhere', os.environ)
