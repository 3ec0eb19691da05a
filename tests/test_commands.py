"""The command lines themselves: real ones where a process is what matters, the others called in this one."""

import os
import runpy
import signal
import sys

import pytest
import torch

import classify as script
import models
from tests.checkpoints import released
from tests.conftest import Script
from tests.launch import ROOT, start
from utils import checkpoint

SMALL = '-a dla60x -b 4 -g 2 --lr 0.01 --image-size 32 -p 1 --device cpu'
LAST = 'dla60x_checkpoint.pth.tar'
SCRIPTS = [ROOT / f'{name}.py' for name in ('classify', 'docker_classify', 'multilabel_classify', 'segment')]
MAKERS = [ROOT / 'data' / f'{name}.py' for name in ('sample', 'fashion_mnist', 'prepare_voc')]
TOOLS = [path for path in sorted((ROOT / 'tools').rglob('*.py')) if 'def make_parser' in path.read_text()]
HUB = f"""import torch
net = torch.hub.load({str(ROOT)!r}, 'dla60x', source='local', num_classes=3)
print(tuple(net(torch.zeros(2, 3, 32, 32)).shape))"""


def test_sigterm_to_the_whole_group_saves_and_exits_143(folder, tmp_path):
    with start('classify.py', folder, *SMALL.split(), '-j', 2, '--epochs', 100, '--output', tmp_path) as process:
        for line in process.stdout:
            if line.startswith('Epoch: [0][3/'):
                os.killpg(process.pid, signal.SIGTERM)
                break
        rest, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (143, '')
    assert '=> SIGTERM: saved at epoch' in rest
    found = checkpoint.read(tmp_path / LAST)
    assert found.epoch or found.position['step'] >= 4


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ((ROOT / 'segment.py', '--exp=x', '--data=no'), (1, '', 'error: no list no/VOC2012/list/val.txt\n')),
        (('-c', HUB), (0, '(2, 3)\n', '')),
    ],
)
def test_script_and_torch_hub_find_their_packages_from_elsewhere(tmp_path, arguments, expected):
    with start(*arguments, cwd=tmp_path, PYTHONPATH='') as process:
        ended = process.communicate(timeout=300)
    assert (process.returncode, *ended) == expected


@pytest.mark.parametrize('path', [*SCRIPTS, *MAKERS, *TOOLS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_find_their_packages_and_tell_how_they_are_called(path, monkeypatch, capsys):
    """Scripts and makers are run as files, from anywhere; tools as modules, from here."""
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__main__')
    monkeypatch.setattr(sys, 'argv', [str(path), '--help'])
    monkeypatch.setattr(sys, 'path', [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as end:
        if path in TOOLS:
            runpy.run_module(module, run_name='__main__')
        else:
            runpy.run_path(str(path), run_name='__main__')
            assert sys.path[0] == str(ROOT)
    assert end.value.code == 0
    out = capsys.readouterr().out
    place = path.relative_to(ROOT)
    assert f'    python {place} ' in out or f' {place} DIR' in out or f'    python -m {module} ' in out


def test_released_checkpoint_is_evaluated_and_resumed(folder, tmp_path, capsys):
    """With momentum of what had gradients: not of DLA's unused projections."""
    net = models.dla60x(6)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3) if parameter.requires_grad else None
    optimizer.step()
    content = released(net, optimizer) | {'arch': 'dla60x'}
    torch.save(content, tmp_path / 'old', _use_new_zipfile_serialization=False)
    classify = Script(script, folder, f'{SMALL} -j 0 --resume {tmp_path}/old')
    classify('--evaluate')
    assert capsys.readouterr().out.splitlines()[-1].startswith(' * Err@1 ')
    classify('--epochs', 8, '--output', tmp_path)
    found = checkpoint.read(tmp_path / LAST)
    assert found.epoch == 8
    assert found.optimizer['state'].keys() == optimizer.state_dict()['state'].keys()
