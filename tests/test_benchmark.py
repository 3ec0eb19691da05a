"""The benchmark's table and file, from a small net; times themselves are not looked at."""

import json

import pytest

from tests.conftest import Script, TinyNet, TinySegmenter
from tools import benchmark


@pytest.fixture
def bench(monkeypatch):
    for name, build in ('tiny', TinyNet), ('tiny/segmenter', TinySegmenter):
        monkeypatch.setitem(benchmark.NETS, name, build)
    monkeypatch.setitem(benchmark.RIVALS, 'rival', TinyNet)
    nets = 'tiny tiny/segmenter --rivals rival'
    return Script(benchmark, '--nets', f'{nets} -b 2 --image-size 32 --rounds 3 --device cpu')


@pytest.mark.parametrize('train', [[], ['--train']])
def test_every_way_has_a_row_and_a_share_of_the_matrix_product(bench, tmp_path, capsys, train):
    bench('--json', tmp_path / 'speed.json', *train)
    written = json.loads((tmp_path / 'speed.json').read_text())
    rows = {row['name']: row for row in written['rows']}
    ways = ['reference', 'off', 'bf16']
    ours = [f'{net}, {way}' for net in ('tiny', 'tiny/segmenter') for way in ways]
    rivals = [f"torchvision's rival, {way}" for way in ways[1:]]
    assert list(rows) == [*ours, *rivals, 'matrix product, off', 'matrix product, bf16']
    assert rows['tiny, reference']['times_reference'] == 1
    for row in rows.values():
        assert row['lowest'] <= row['images_per_second'] <= row['highest']
        assert row['tflops'] > 0
    products = {amp: rows[f'matrix product, {amp}']['tflops'] for amp in ('off', 'bf16')}
    assert rows['tiny, bf16']['share'] == pytest.approx(rows['tiny, bf16']['tflops'] / products['bf16'])
    assert rows['tiny, off']['share'] == pytest.approx(rows['tiny, off']['tflops'] / products['off'])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('  ')[0] for line in lines[1:]] == list(rows)


def test_work_is_two_operations_per_multiply_accumulate_and_thrice_that_in_training(bench, tmp_path):
    rates = {}
    for train in [], ['--train']:
        bench('--json', tmp_path / 'speed.json', *train)
        rows = {row['name']: row for row in json.loads((tmp_path / 'speed.json').read_text())['rows']}
        row = rows['tiny, off']
        rates[bool(train)] = row['tflops'] * 1e12 / row['images_per_second']
    assert rates[True] == pytest.approx(3 * rates[False])
    assert rates[False] == pytest.approx(2 * benchmark.count_macs(TinyNet, 32))
