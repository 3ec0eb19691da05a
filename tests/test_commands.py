"""The command lines themselves, in processes of their own, with nets of the registry."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import models
from tests.reference import load
from utils import checkpoint

ROOT = Path(__file__).parent.parent
SMALL = '-a dla60x -b 4 -g 2 --lr 0.01 --image-size 32 -j 2 -p 1 --device cpu'.split()  # noqa: SIM905


def start(*arguments):
    """classify.py with these arguments, its output readable line by line."""
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    command = [sys.executable, 'classify.py', *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True)


def test_sigterm_to_the_whole_group_saves_and_exits_143(folder, tmp_path):
    with start(folder, *SMALL, '--epochs', 100, '--output', tmp_path) as process:
        for line in process.stdout:
            if line.startswith('Epoch: [0][3/'):
                os.killpg(process.pid, signal.SIGTERM)
                break
        rest, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (143, '')
    assert '=> SIGTERM: saved at epoch' in rest
    found = checkpoint.read(tmp_path / 'dla60x_checkpoint.pth.tar')
    assert found.epoch or found.position['step'] >= 4


def test_released_checkpoint_is_evaluated_and_resumed(folder, tmp_path):
    """A file as PyTorch 1.0 wrote it: names and shapes of the reference, its optimizer keyed by ids in order."""
    torch.manual_seed(0)
    net = models.dla60x(6)
    state = {f'module.{name}': value for name, value in net.state_dict().items()}
    assert [name for name, _ in load('state_dicts')['dla60x']] == [name.removeprefix('module.') for name in state]
    unused = set(load('golden')['dla60x']['train']['no_gradient'])
    ids = {name: 140_000_000 + 64 * place for place, (name, _) in enumerate(net.named_parameters())}
    buffers = {
        ids[name]: {'momentum_buffer': torch.full_like(value, 1e-3)}
        for name, value in net.named_parameters()
        if name not in unused
    }
    optimizer = {'state': buffers, 'param_groups': [{'lr': 0.1, 'momentum': 0.9, 'params': list(ids.values())}]}
    content = {'epoch': 5, 'arch': 'dla60x', 'state_dict': state, 'best_err1': 50.0, 'optimizer': optimizer}
    torch.save(content, tmp_path / 'old.pth.tar', _use_new_zipfile_serialization=False)

    with start(folder, *SMALL, '--evaluate', '--resume', tmp_path / 'old.pth.tar') as process:
        out, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, '')
    assert out.splitlines()[-1].startswith(' * Err@1 ')

    with start(folder, *SMALL, '--epochs', 6, '--resume', tmp_path / 'old.pth.tar', '--output', tmp_path) as process:
        out, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, '')
    found = checkpoint.read(tmp_path / 'dla60x_checkpoint.pth.tar')
    assert found.epoch == 6
    assert found.optimizer['state'].keys() == {place for place, name in enumerate(ids) if name not in unused}


def test_error_is_one_line_without_a_traceback(folder, tmp_path):
    (folder / 'train' / 'cat' / '0.png').write_bytes(b'')
    with start(folder, *SMALL, '--output', tmp_path) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1
    assert 'cat/0.png' in errors


@pytest.mark.parametrize('arguments', [['--help'], ['nowhere', '--evaluate', '--resume', 'x']])
def test_help_and_a_first_mistake(arguments):
    with start(*arguments) as process:
        out, errors = process.communicate(timeout=100)
    assert '--save-steps N' in out if arguments == ['--help'] else 'no folder nowhere/val' in errors


def test_tools_run_as_files_from_anywhere(tmp_path):
    tools = sorted((ROOT / 'tools').glob('[!_]*.py'))
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    started = [subprocess.Popen([sys.executable, tool, '--help'], cwd=tmp_path, **pipes) for tool in tools]
    for tool, process in zip(tools, started, strict=True):
        out, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, ''), tool
        assert f'python -m tools.{tool.stem}' in out or tool.stem == 'model_table'  # which has no arguments
