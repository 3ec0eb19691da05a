"""The benchmark of nets: its table and file, from a small net; times themselves are not looked at."""

import json
import os
import signal

import pytest
import torch

from tests.conftest import Script, TinyNet, TinySegmenter
from tools import benchmark
from utils import net_speed
from utils.apart import Apart
from utils.cost import count_macs
from utils.errors import UserError
from utils.net_speed import Way, Work

MIB = 2**20


class Heavy(TinyNet):
    """A TinyNet that holds 200 MiB of weights."""

    def __init__(self, num_classes: int = 1000):
        super().__init__(num_classes)
        self.ballast = torch.nn.Parameter(torch.ones(50 * MIB))


class Here:
    """Apart, in this process."""

    def __init__(self, name, make_step, device, *args):
        self.step = make_step(*args)

    def __call__(self):
        self.step()

    def peak(self):
        return 3 * MIB

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def two_steps_peak(way, work):
    with Apart('net', net_speed.step_of, torch.device('cpu'), way, work) as step:
        step()
        step()
        return step.peak()


def ending():
    raise SystemExit(3)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def unmade():
    raise ValueError('no such size')


def failing():
    def step():
        raise MemoryError

    return step


@pytest.fixture
def bench(monkeypatch):
    for name, build in ('tiny', TinyNet), ('tiny/segmenter', TinySegmenter):
        monkeypatch.setitem(benchmark.NETS, name, build)
    monkeypatch.setitem(benchmark.RIVALS, 'rival', TinyNet)
    monkeypatch.setattr(net_speed, 'Apart', Here)
    monkeypatch.setattr(net_speed, 'MATRIX_SIDE', 64)  # 2048 in bf16 take minutes on a processor that has no bf16
    nets = 'tiny tiny/segmenter --rivals rival'
    return Script(benchmark, '--nets', f'{nets} -b 2 --image-size 32 --rounds 3 --device cpu')


def rows_of(file):
    return {row['name']: row for row in json.loads(file.read_text())['rows']}


@pytest.mark.parametrize('train', [[], ['--train']])
def test_every_way_has_a_row_and_a_share_of_the_matrix_product(bench, tmp_path, capsys, train):
    bench('--json', tmp_path / 'speed.json', *train)
    rows = rows_of(tmp_path / 'speed.json')
    ways = ['reference', 'off', 'bf16']
    ours = [f'{net}, {way}' for net in ('tiny', 'tiny/segmenter') for way in ways]
    rivals = [f"torchvision's rival, {way}" for way in ways[1:]]
    assert list(rows) == [*ours, *rivals, 'matrix product, off', 'matrix product, bf16']
    assert rows['tiny, bf16']['times_reference'] == pytest.approx(
        rows['tiny, bf16']['median'] / rows['tiny, reference']['median'])  # fmt: skip
    assert rows['tiny, reference']['times_reference'] == 1
    for name in ours + rivals:
        row, amp = rows[name], 'bf16' if name.endswith('bf16') else 'off'
        assert row['lowest'] <= row['median'] <= row['highest']
        assert row['of_matrix_product'] == pytest.approx(row['flops'] / rows[f'matrix product, {amp}']['flops'])
        assert row['peak_bytes'] == 3 * MIB
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(' | ')[0].removeprefix('| ') for line in lines[2:]] == list(rows)
    assert {line.count('|') for line in lines} == {7}


def test_compiled_ways_are_those_of_both_sides_but_not_the_references():
    ways = net_speed.ways_of(['resnext50'], ['densenet201'], ['off'], ['channels-last'], compiled=True)
    assert list(map(str, ways)) == [
        'resnext50, reference', 'resnext50, off', 'resnext50, off, compiled',
        "torchvision's densenet201, off", "torchvision's densenet201, off, compiled"]  # fmt: skip
    assert [way.compute('cpu').compile for way in ways] == [False, False, True, False, True]
    assert ways[0].compute('cpu').layout is torch.contiguous_format


def test_layouts_are_ways_of_both_sides():
    ways = net_speed.ways_of(['resnext50'], ['densenet201'], ['bf16'], ['channels-last', 'contiguous'], compiled=False)
    assert list(map(str, ways)) == [
        'resnext50, reference', 'resnext50, bf16', 'resnext50, bf16, contiguous',
        "torchvision's densenet201, bf16", "torchvision's densenet201, bf16, contiguous"]  # fmt: skip
    layouts = [way.compute('cpu').layout for way in ways]
    assert layouts == [torch.contiguous_format, *2 * [torch.channels_last, torch.contiguous_format]]


def test_work_is_two_operations_per_multiply_accumulate_and_thrice_that_in_training():
    macs = count_macs(TinyNet, 32)
    assert Work('cpu', False, 5, 32).operations(TinyNet) == 10 * macs
    assert Work('cpu', True, 5, 32).operations(TinyNet) == 30 * macs


def test_peak_memory_is_that_of_one_way_alone():
    work = Work('cpu', train=True, batch_size=2, image_size=32)
    ballast = torch.ones(400 * MIB // 4)  # of this process: no way is charged with it
    light, heavy = (two_steps_peak(Way('net', build), work) for build in (TinyNet, Heavy))
    assert ballast.numel() and 200 * MIB <= heavy - light < 250 * MIB


@pytest.mark.parametrize(
    'make_step, told',
    [
        (ending, 'net: its process ended with exit code 3'),
        (killed, 'net: its process ended with exit code -9 (killed, perhaps for want of memory)'),
        (unmade, 'net: no such size'),
        (failing, 'net: MemoryError'),
    ],
)
def test_a_step_that_fails_is_told_of_in_one_line(make_step, told, capfd):
    with pytest.raises(UserError) as error, Apart('net', make_step, torch.device('cpu')) as step:
        step()
    assert str(error.value) == told
    assert capfd.readouterr().err == ''


def test_a_file_that_cannot_be_written_is_an_error_before_the_work(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(net_speed, 'measure', None)
    assert f'cannot write {tmp_path}' in bench.error(capsys, '--json', tmp_path)
