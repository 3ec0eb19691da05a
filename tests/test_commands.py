"""The command lines themselves: real ones where a process is what matters, the others called in this one."""

import os
import runpy
import signal
import sys

import pytest
import torch

import classify as script
import models
from tests.conftest import Script
from tests.launch import ROOT, start
from tests.reference import load
from utils import checkpoint

SMALL = '-a dla60x -b 4 -g 2 --lr 0.01 --image-size 32 -p 1 --device cpu'
LAST = 'dla60x_checkpoint.pth.tar'
SCRIPTS = [ROOT / f'{name}.py' for name in ('classify', 'docker_classify', 'multilabel_classify', 'segment')]
TOOLS = [path for path in sorted((ROOT / 'tools').glob('[!_]*.py')) if path.stem != 'model_table']  # has no arguments


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


def test_tool_run_as_a_file_from_elsewhere_ends_a_mistake_with_one_line(tmp_path):
    with start(ROOT / 'tools' / 'predict.py', 'net.pth', 'picture.jpg', cwd=tmp_path, PYTHONPATH='') as process:
        ended = process.communicate(timeout=300)
    assert (process.returncode, ended) == (1, ('', 'error: no picture picture.jpg\n'))


@pytest.mark.parametrize('path', [*SCRIPTS, *TOOLS], ids=lambda path: path.stem)
def test_files_find_their_packages_and_tell_how_they_are_called(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(path), '--help'])
    monkeypatch.setattr(sys, 'path', [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name='__main__')
    assert (end.value.code, sys.path[0]) == (0, str(ROOT))
    out = capsys.readouterr().out
    assert f'    python {path.name} ' in out or f' {path.name} DIR' in out or f'    python -m tools.{path.stem} ' in out


def test_released_checkpoint_is_evaluated_and_resumed(folder, tmp_path, capsys):
    """A file as PyTorch 1.0 wrote it, with momentum, by ids in order, of what had gradients."""
    torch.manual_seed(0)
    net, unused = models.dla60x(6), load('golden')['dla60x']['train']['no_gradient']
    trained = {place: value for place, (name, value) in enumerate(net.named_parameters()) if name not in unused}
    buffers = {140 + 64 * place: {'momentum_buffer': torch.full_like(value, 1e-3)} for place, value in trained.items()}
    ids = [140 + 64 * place for place, _ in enumerate(net.parameters())]
    optimizer = {'state': buffers, 'param_groups': [{'lr': 0.1, 'momentum': 0.9, 'params': ids}]}
    state = {f'module.{name}': value for name, value in net.state_dict().items()}
    content = {'epoch': 5, 'arch': 'dla60x', 'state_dict': state, 'best_err1': 50.0, 'optimizer': optimizer}
    torch.save(content, tmp_path / 'old', _use_new_zipfile_serialization=False)

    classify = Script(script, folder, f'{SMALL} -j 0 --resume {tmp_path}/old')
    classify('--evaluate')
    assert capsys.readouterr().out.splitlines()[-1].startswith(' * Err@1 ')
    classify('--epochs', 6, '--output', tmp_path)
    found = checkpoint.read(tmp_path / LAST)
    assert found.epoch == 6
    assert found.optimizer['state'].keys() == trained.keys()
