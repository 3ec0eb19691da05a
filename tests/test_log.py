"""log.jsonl and curves.png: no curve is lost to a kill, no run to a spoiled line."""

import os

import pytest

from tests.checkpoints import killed_at
from utils import reporting
from utils.reporting import Log, draw_curves

SPOILED = [
    *(b'not json', b'\xff\xfe\x00 bytes of another text', b'7', b'null', b'"text"', b'[{"epoch": 0}]', b'{"other": 1}'),
    *(b'{"epoch": "0", "train": {"loss": 1.0}}', b'{"epoch": -1}', b'{"epoch": 1.5}', b'{"epoch": %d}' % 10**99),
    *(b'{"epoch": 0, "train": 5}', b'{"epoch": 0, "val": [1]}', b'{"args": {}, "checkpoint": ["a"]}'),
    *(b'{"args": {}, "from_epoch": null}', b'[' * 100_000, b''),
]


@pytest.mark.parametrize('line', SPOILED, ids=range(len(SPOILED)))
@pytest.mark.parametrize('end', [b'\n', b''], ids=['whole', 'cut off'])
def test_spoiled_line_costs_that_line(tmp_path, line, end):
    log = Log(tmp_path)
    log.note(args={}, checkpoint='a', from_epoch=0)
    for epoch in range(2):
        with open(log.path, 'ab') as file:
            file.write(line + end)
        log.note(epoch=epoch, train={'loss': 1.0})
    assert [record['epoch'] for record in log.epochs()] == [0, 1]


def test_curves_are_of_one_run(tmp_path):
    log = Log(tmp_path)
    for name, begin, losses, told in [
        ('a', 0, [9, 8, 7], [9, 8, 7]),
        ('b', 0, [6], [6]),
        ('b', 1, [5], [6, 5]),
        ('a', 3, [4], [9, 8, 7, 4]),
        ('a', 1, [3], [9, 3]),  # from an older checkpoint
        ('a', 0, [], []),
    ]:
        log.note(args={}, checkpoint=name, from_epoch=begin)
        for epoch, loss in enumerate(losses, begin):
            log.note(epoch=epoch, train={'loss': loss})
        assert [record['train']['loss'] for record in log.epochs()] == told


def test_curves_that_lack_an_epoch_are_drawn_anew_and_others_are_not(classify, tmp_path, monkeypatch, capsys):
    """As those of a run that was killed before it drew them."""
    arguments = '--output', tmp_path, '--auto-resume', '--epochs'
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, os, 'replace', 1, 'curves.png')
        classify(*arguments, 1)
    assert not (tmp_path / 'curves.png').exists()
    drawn, draw = [], Log.draw
    monkeypatch.setattr(Log, 'draw', lambda log: drawn.append(len(log.epochs())) or draw(log))
    classify(*arguments, 2)
    assert drawn == [1, 2]
    classify(*arguments, 2)
    assert '=> nothing to train: 2 epochs are done, and --epochs is 2\n' in capsys.readouterr().out
    assert drawn == [1, 2]


def test_curves_show_what_there_is(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(reporting, 'write_figure', lambda figure, *_, **__: drawn.extend(figure.axes))
    records = [{'epoch': n, 'train': {'loss': value}} for n, value in enumerate([1.0, 'x', None, 0.5, {}])]
    draw_curves(records, tmp_path / 'curves.png')
    (panel,) = drawn
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ['train']
    assert panel.lines[0].get_xydata().tolist() == [[1, 1], [4, 0.5]]
    assert all(tick == int(tick) for tick in panel.get_xticks())


@pytest.mark.parametrize('values', [[], ['x'], [float('nan')], [float('inf'), 1.0], [1e300, -1e300]])
def test_whatever_the_log_holds_is_drawn_or_left_out(tmp_path, values):
    draw_curves([{'epoch': 2**62 * n, 'train': {'loss': v}} for n, v in enumerate(values)], tmp_path / 'curves.png')
