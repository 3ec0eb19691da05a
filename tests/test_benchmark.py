"""The benchmark of nets and of loaders: tables and files; times themselves are not looked at."""

import json
import multiprocessing
import os
import tempfile
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torchvision.models import regnet_y_400mf

from models.cost import count_macs
from models.elastic import TwoBranch
from models.norm import batch_norms
from tests.conftest import Script, TinyNet, TinySegmenter
from tools.benchmark import __main__ as benchmark
from tools.benchmark import loaders
from tools.benchmark import nets as net_speed
from tools.benchmark.nets import Way, Work
from tools.benchmark.timing import Apart
from utils.errors import UserError

MIB = 2**20
CPU = torch.device('cpu')


# Nets


@pytest.fixture
def bench(here, monkeypatch):
    monkeypatch.setitem(benchmark.NETS, 'tiny', TinyNet)
    monkeypatch.setitem(benchmark.NETS, 'tiny/segmenter', TinySegmenter)
    monkeypatch.setitem(benchmark.RIVALS, 'rival', TinyNet)
    nets = 'tiny tiny/segmenter --rivals rival'
    return Script(benchmark, '--nets', f'{nets} -b 2 --image-size 32 --rounds 3 --device cpu')


@pytest.mark.parametrize('train', [[], ['--train']])
def test_every_way_has_a_row_and_a_share_of_the_matrix_product(bench, tmp_path, capsys, train):
    bench('--json', tmp_path / 'speed.json', *train)
    rows = {row['name']: row for row in json.loads((tmp_path / 'speed.json').read_text())['rows']}
    ours = [f'{net}, {way}' for net in ('tiny', 'tiny/segmenter') for way in ('reference', 'float32', 'bf16')]
    rivals = [f"torchvision's rival, {way}" for way in ('float32', 'bf16')]
    assert list(rows) == [*ours, *rivals, 'matrix product, float32', 'matrix product, bf16']
    compared = rows['tiny, bf16']['median'] / rows['tiny, reference']['median']
    assert rows['tiny, bf16']['times_reference'] == pytest.approx(compared)
    assert rows['tiny, reference']['times_reference'] == 1
    macs = count_macs(TinyNet, 32)
    ours_in_float32 = rows['tiny, float32']
    assert ours_in_float32['flops'] == pytest.approx(2 * macs * ours_in_float32['median'] * (3 if train else 1))
    for name in ours + rivals:
        row, product = rows[name], rows[f'matrix product, {"bf16" if name.endswith("bf16") else "float32"}']
        assert row['lowest'] <= row['median'] <= row['highest']
        assert row['of_matrix_product'] == pytest.approx(row['flops'] / product['flops'])
        assert row['peak_bytes'] == 3 * MIB
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(' | ')[0].removeprefix('| ') for line in lines[2:]] == list(rows)
    assert {line.count('|') for line in lines} == {7}


def test_ways_are_those_of_both_sides_but_the_references():
    ways = net_speed.ways_of(['resnext50'], ['densenet201'], ['off', 'bf16'], True)
    kinds = 'float32', 'float32, compiled', 'bf16', 'bf16, compiled'
    both = [f'{net}, {kind}' for net in ('resnext50', "torchvision's densenet201") for kind in kinds]
    assert list(map(str, ways)) == ['resnext50, reference', *both]
    last_and_compiled = [(way.compute('cpu').layout is torch.channels_last, way.compute('cpu').compile) for way in ways]
    assert last_and_compiled == [(False, False), *[(True, False), (True, True)] * 4]


def test_nets_of_libraries_are_known_by_name(here, tmp_path, capsys):
    name, sizes = 'torchvision/regnet_y_400mf', '-b 2 --image-size 32 --rounds 1 --device cpu'
    Script(benchmark, '--nets', f'{name} --rivals --amp off {sizes} --json {tmp_path}/speed.json')()
    reference, ours, _ = json.loads((tmp_path / 'speed.json').read_text())['rows']
    assert (reference['name'], ours['name']) == (f'{name}, reference', f'{name}, float32')
    assert ours['flops'] / ours['median'] == pytest.approx(2 * count_macs(regnet_y_400mf(), 32))
    elastic, _ = net_speed.ways_of([f'{name}_elastic'], [], ['off'], False)
    assert any(isinstance(block, TwoBranch) for block in elastic.build().modules())
    assert 'torchvision has no net nothing' in Script(benchmark, '--nets', 'torchvision/nothing').error(capsys)


def test_peak_memory_is_that_of_one_way_alone():
    ballast = torch.ones(150 * MIB)  # 600 MiB of this process: the way is not charged with it
    work = Work('cpu', train=True, batch_size=2, image_size=32)
    heavy = Way('net', partial(TinyNet, 1_600_000))  # 100 MiB of weights, as many of gradients and of momentum
    with Apart('net', net_speed.turn_of, CPU, heavy, work) as step:
        step()
        step()
        assert 300 * MIB <= step.peak < ballast.nbytes


@pytest.mark.parametrize('images', [1, 2])
def test_batch_norms_are_frozen_where_there_are_too_few_images(images):
    net = TinySegmenter()
    net_speed.step_of(Way('net', lambda: net), Work('cpu', True, images, 32))
    assert {norm.training for norm in batch_norms(net)} == {images == 2}


@pytest.mark.parametrize(
    'make_step, told',
    [
        (lambda: os.kill(os.getpid(), 9), 'its process ended with exit code -9 (killed, perhaps for want of memory)'),
        (lambda: int('no'), "invalid literal for int() with base 10: 'no'"),
        (lambda: lambda: bytearray(2**62), 'MemoryError'),
    ],
)
def test_a_step_that_fails_is_told_of_in_one_line(make_step, told, capfd, monkeypatch):
    context = multiprocessing.get_context('fork')  # needs no import of torch
    monkeypatch.setattr(multiprocessing, 'get_context', lambda way: context)
    with pytest.raises(UserError) as error, Apart('net', make_step, CPU) as step:
        step()
    assert str(error.value) == f'net: {told}'
    assert capfd.readouterr().err == ''


def test_a_file_that_cannot_be_written_is_an_error_before_the_work(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(net_speed, 'measure', None)
    assert f'cannot write {tmp_path}' in bench.error(capsys, '--json', tmp_path)


# Loaders


def test_loaders_are_measured_by_workers(tmp_path, capsys, monkeypatch):
    with tempfile.TemporaryDirectory() as scratch:  # of a short name: workers' sockets have paths there
        monkeypatch.setattr(tempfile, 'tempdir', scratch)
        measure = Script(benchmark, '--rounds', f'2 --pictures 3 --json {tmp_path / "speed.json"}')
        measure('--input', '--images', 16, '--workers', 0, 1)
        assert not os.listdir(scratch)
    rows = json.loads((tmp_path / 'speed.json').read_text())['rows']
    assert [row['workers'] for row in rows] == 3 * [0] + 3 * [1]
    for row, first in zip(rows, 3 * [rows[0]] + 3 * [rows[3]], strict=True):
        assert 1 < row['lowest'] <= row['median'] <= row['highest']
        assert row['times_torchvision'] == pytest.approx(row['median'] / first['median'])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(' | ')[:2] for line in lines[2:]] == [[f'| {row["workers"]}', row['loader']] for row in rows]


def test_epoch_holds_all_images(tmp_path):
    loaders.draw_pictures(tmp_path / 'class', 2)
    epochs = loaders.loaders(tmp_path, 40, 0).values()
    assert [sum(len(images) for images, _ in epoch) for epoch in epochs] == [40, 40, 40]


# On GPUs


@pytest.mark.parametrize('lasts, steps', [(0.001, 20), (0.3, 4)])
def test_a_round_on_a_gpu_is_twenty_steps_or_those_of_a_second_and_waits_once(lasts, steps):
    told, now = [], [0.0]

    def step():
        now[0] += lasts
        told.append('step')
        return SimpleNamespace(item=lambda: told.append('wait'))

    seconds = net_speed.round_of(step, *net_speed.ROUND, clock=lambda: now[0])
    assert (told, seconds) == (['step'] * steps + ['wait'], pytest.approx(lasts))
