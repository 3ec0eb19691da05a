"""The speed of stages: what is timed and compared, with a clock of the test's own."""

from itertools import count

import pytest
import torch
from torch import nn

import models
from tests.conftest import Script
from tools import stage_speed
from tools.stage_speed import Stage, rate_at, timed


class Twice(nn.Module):
    """Two stages, the second of which is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Identity()), nn.Identity()

    def forward(self, x):
        return self.second(self.second(self.first(x)))


def test_each_module_is_given_the_time_of_its_calls():
    net = Twice()
    clock = map(float, count()).__next__  # a second passes between two looks at it
    with timed(net, ['first', 'second', ''], clock) as seconds:
        net(torch.zeros(1))
    assert seconds == {'first': 1, 'second': 2, '': 7}
    net(torch.zeros(1))
    assert seconds[''] == 7


def test_rate_at_the_rates_of_another_net():
    base = {'a': Stage(100, 1), 'b': Stage(100, 4), '': Stage(200, 6)}
    stages = {'a': Stage(50, 1), 'b': Stage(200, 5), 'c': Stage(10, 2), '': Stage(260, 9)}
    assert rate_at(base, base) == base[''].rate
    # 0.5 and 8 seconds at the base's rates; c and what is between the stages (1 second) as they are.
    assert rate_at(stages, base) == pytest.approx(260 / (0.5 + 8 + 2 + 1))


@pytest.mark.parametrize('depth, place, names', [(1, '', ('conv1', 'fc')), (2, 'block.', ('conv1', 'conv2', 'conv3'))])
def test_table_has_each_stage_of_each_net(tiny, monkeypatch, capsys, depth, place, names):
    monkeypatch.setitem(models.classifiers, 'other', models.classifiers[tiny])
    Script(stage_speed, 'tiny', f'other --depth {depth} -b 2 --image-size 32 --rounds 1')()
    *lines, last = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    assert rows[0] == ['net', 'stage', 'GFLOP', 'ms', 'GFLOP/s', "of tiny's"]
    stages = [f'{place}{name}{low}' for name in names for low in ('', '_d')[:depth]]
    assert sorted(row[:2] for row in rows[2:]) == sorted([net, x] for net in (tiny, 'other') for x in (*stages, 'all'))
    assert {row[-1] for row in rows[2:] if row[0] == 'tiny'} == {'1.00'}
    assert last.startswith('other: ')
    assert "of tiny's GFLOP/s; with each stage at the rate of tiny's, " in last


def test_operations_are_two_per_multiply_accumulate_and_image(tiny):
    args = stage_speed.make_parser().parse_args(['tiny', '-b', '3', '--image-size', '32'])
    found = stage_speed.stage_operations(models.classifiers[tiny](), args)
    assert (found['conv1'], found['fc']) == (2 * 3 * 8 * 8 * 8 * 27, 2 * 3 * 16 * 1000)
    assert list(found) == ['conv1', 'fc', '']
