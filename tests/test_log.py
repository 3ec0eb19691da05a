"""log.jsonl and curves.png: no curve is lost to a kill, no run to a spoiled line."""

import json
import os

import pytest
from PIL import Image

from tests.runs import LAST, epochs
from tests.test_run import killed_at
from utils import reporting
from utils.reporting import Log, draw_curves

SPOILED = [
    b'not json',
    b'\xff\xfe\x00 bytes of another text',
    b'7',
    b'null',
    b'"text"',
    b'[{"epoch": 0}]',
    b'{"other": 1}',
    b'{"epoch": "0", "train": {"loss": 1.0}}',
    b'{"epoch": -1}',
    b'{"epoch": 1.5}',
    b'{"epoch": 1' + b'0' * 400 + b'}',
    b'{"epoch": 0, "train": 5}',
    b'{"epoch": 0, "val": [1]}',
    b'{"args": {}, "checkpoint": ["a"]}',
    b'{"args": {}, "from_epoch": null}',
    b'[' * 100_000,
    b'',
]


@pytest.mark.parametrize('epochs_wanted', [1, 2])  # nothing left to train, or an epoch
def test_curves_of_a_run_killed_before_they_were_drawn_are_drawn(classify, tmp_path, monkeypatch, epochs_wanted):
    arguments = '--output', tmp_path, '--auto-resume', '--epochs', epochs_wanted
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, 1, 'curves.png')
        classify(*arguments)
    assert (tmp_path / LAST).exists()
    assert not (tmp_path / 'curves.png').exists()
    drawn = []
    monkeypatch.setattr(Log, 'draw', lambda log: drawn.append([record['epoch'] for record in log.epochs()]))
    classify(*arguments)
    assert drawn == [[0], [0, 1]][:epochs_wanted]


def test_curves_that_lack_an_epoch_are_drawn_anew_and_others_are_not(classify, tmp_path, monkeypatch):
    classify('--output', tmp_path, '--epochs', 1)
    drawn = []
    monkeypatch.setattr(Log, 'draw', lambda log: drawn.append(len(log.epochs())))
    classify('--output', tmp_path, '--epochs', 1, '--auto-resume')
    assert drawn == []
    os.utime(tmp_path / 'curves.png', (0, 0))
    classify('--output', tmp_path, '--epochs', 1, '--auto-resume')
    assert drawn == [1]


@pytest.mark.parametrize('line', SPOILED, ids=range(len(SPOILED)))
def test_spoiled_line_costs_that_line(tmp_path, line):
    log = Log(tmp_path)
    log.start({}, 'a', from_epoch=0)
    for epoch in range(2):
        with open(log.path, 'ab') as file:
            file.write(line + b'\n')
        log.note(epoch=epoch, train={'loss': 1.0})
    assert [record['epoch'] for record in log.epochs()] == [0, 1]


def test_run_with_a_spoiled_log_goes_on(classify, tmp_path):
    classify('--output', tmp_path, '--epochs', 1)
    with open(tmp_path / 'log.jsonl', 'ab') as file:
        file.write(b'\n'.join([*SPOILED, b'{"epoch": 1, "train": {"loss": "high", "err1": null}, "val": {"err5": 3}}']))
    classify('--output', tmp_path, '--auto-resume')
    assert [record['epoch'] for record in Log(tmp_path).epochs()] == [0, 1]
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.width > 500


def test_values_of_other_kinds_cost_their_points(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(reporting, 'write_figure', lambda figure, *_, **__: drawn.extend(figure.axes))
    records = [{'epoch': n, 'train': {'loss': value}} for n, value in enumerate([3.0, 'x', None, 1.0, {}])]
    draw_curves(records, tmp_path / 'curves.png')
    assert drawn[0].lines[0].get_xydata().tolist() == [[1, 3], [4, 1]]


@pytest.mark.parametrize('values', [[], ['x'], [float('nan')], [float('inf'), 1.0], [1e300, -1e300]])
def test_whatever_the_log_holds_is_drawn_or_left_out(tmp_path, values):
    draw_curves([{'epoch': 2**62 * n, 'train': {'loss': v}} for n, v in enumerate(values)], tmp_path / 'curves.png')


def test_log_of_a_run_is_as_before(classify, tmp_path):
    classify('--output', tmp_path, '--epochs', 1)
    assert [set(record) for record in Log(tmp_path).epochs()] == [
        {'epoch', 'lr', 'train', 'val', 'best_err1', 'checkpoint', 'from_epoch'}
    ]
    assert json.loads((tmp_path / 'log.jsonl').read_text().splitlines()[1]) == epochs(tmp_path)[1]
