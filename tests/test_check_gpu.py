"""tools/check_gpu: the checks it does on GPUs, on this CPU and small; its table, its files, its exit status."""

import json
from functools import partial

import pytest
import torch

from tests.conftest import Script, TinyNet, register
from tools.check_gpu import __main__ as tool
from tools.check_gpu import cost
from tools.check_gpu.result import at_most, skipped

CPU = torch.device('cpu')
GPU_ONLY = '--amp tf32', 'DataParallel', 'the GPU of a number', 'cuDNN', 'no waits'  # names begin so
TINY = {'net': 'resnext', 'side': 32}
SMALL = {
    'golden dla60x_elastic/seg, float32 and bf16': {},
    'trained as the reference, classify/dla60x/g1': {},
    'segmenters resize in float32': {'side': 65},
    'transposed convs add in float32': {'planes': 4},
    **{f'no waits in {work}, {task}': TINY for work in ('training', 'testing') for task in ('imagenet', 'coco')},
    **{f'no waits in {work}, voc': {'net': 'deeplab', 'side': 33} for work in ('training', 'testing')},
    'no waits in training, bf16': {'net': 'deeplab', 'side': 33},
    'no waits in training, fp16': TINY,
    'batches copied ahead are whole': {'count': 64, 'side': 16, 'workers': 1},
    'masks are written late and whole': {'side': 9},
    'a dead process ends the other': {'timeout': 10},
    'memory of segmentation, 16 x 513 x 513': {'net': 'tiny', 'batch': 2, 'side': 33},
    '... in bf16': {'net': 'tiny', 'batch': 2, 'side': 33},
}
# Of recorded nets one is enough; test_models.py has them all.
DONE = [name for name in tool.CHECKS if name in SMALL or not name.startswith(('golden', 'trained'))]
SLOW = [name for name in tool.CHECKS if name not in DONE and name.startswith(('golden dla60x_elastic/seg', 'trained'))]


@pytest.fixture(autouse=True)
def little(here, monkeypatch):
    """Nets are compiled as far as needs no compiler, the smallest is TinyNet, and those of the rates are."""
    register(monkeypatch)
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))
    for nets, name in (cost.NETS, 'resnext50_elastic'), (cost.RIVALS, 'resnext50_32x4d'):
        monkeypatch.setitem(nets, name, TinyNet)
    monkeypatch.setattr(cost, 'BATCH', 2)


@pytest.mark.parametrize('name', [*DONE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_what_holds_on_a_gpu_holds_on_a_cpu(name):
    row = tool.do(name, partial(tool.CHECKS[name], **SMALL.get(name, {})), CPU)
    assert row['status'] == ('skipped' if name.startswith(GPU_ONLY) else 'pass'), row


def test_a_check_that_falls_short_or_fails_is_told_and_the_others_go_on(tmp_path, capsys):
    checks = {
        'good': lambda device: at_most(1e-3, {'a': 0.0, 'b': 1e-4}),
        'broken': lambda device: at_most(1e-3, {'a': 0.0, 'b': float('nan')}),
        'failing': lambda device: int('no'),
        'elsewhere': lambda device: skipped('no such device'),
    }
    assert not tool.check(checks, CPU, tmp_path / 'gpu.md', with_rates=True)
    assert tool.check({'good': checks['good']}, CPU, tmp_path / 'good.md', with_rates=False)
    out = capsys.readouterr().out
    assert '| good | pass | 1.0e-04 (b) | at most 1e-03 | ' in out
    assert '| broken | falls short | nan (b) | at most 1e-03 | ' in out
    assert "| failing | falls short | ValueError: invalid literal for int() with base 10: 'no' |  | " in out
    assert '| elsewhere | skipped | no such device |  | ' in out
    text, noted = (tmp_path / 'gpu.md').read_text(), json.loads((tmp_path / 'gpu.json').read_text())
    assert text.startswith('cpu, PyTorch') and text.partition('\n\n')[2] in out
    assert [row['status'] for row in noted['checks']] == ['pass', 'falls short', 'falls short', 'skipped']
    assert 'Traceback' in noted['checks'][2]['trace']
    names = ['resnext50_elastic, bf16, compiled', "torchvision's resnext50_32x4d, bf16, compiled"]
    assert [row['name'] for row in noted['rates']] == names * 2


def test_exit_status_and_errors_in_one_line(tmp_path, capsys, monkeypatch):
    script = Script(tool, '--out', str(tmp_path / 'gpu.md'))
    assert script.error(capsys).startswith('error: no GPU of NVIDIA here')
    for name, value in ('is_available', True), ('current_device', 0):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert 'no such check; there are no waits in' in script.error(capsys, '--only', 'nothing')
    monkeypatch.setattr(tool, 'check', lambda *_, **__: True)
    script()
    monkeypatch.setattr(tool, 'check', lambda *_, **__: False)
    with pytest.raises(SystemExit) as end:
        script()
    assert end.value.code == 1
