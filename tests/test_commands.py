"""The command lines themselves: real ones where a process is what matters, the others called in this one."""

import io
import os
import runpy
import signal
import sys
from contextlib import redirect_stdout

import pytest

from tests.launch import ROOT, start
from utils import checkpoint
from utils.errors import exit_cleanly

SMALL = '-a dla60x -b 4 -g 2 --lr 0.01 --image-size 32 -p 1 --device cpu'
SCRIPTS = [ROOT / f'{name}.py' for name in ('classify', 'docker_classify', 'multilabel_classify', 'segment')]
MAKERS = [ROOT / 'data' / f'{name}.py' for name in ('sample', 'fashion_mnist', 'prepare_voc')]
TOOLS = [path for path in sorted((ROOT / 'tools').rglob('*.py')) if 'def make_parser' in path.read_text()]


def test_sigterm_to_the_whole_group_saves_and_exits_143(folder, tmp_path):
    with start('classify.py', folder, *SMALL.split(), '-j', 2, '--epochs', 100, '--output', tmp_path) as process:
        for line in process.stdout:
            if line.startswith('Epoch: [0][3/'):
                os.killpg(process.pid, signal.SIGTERM)
                break
        rest, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (143, '')
    assert '=> SIGTERM: saved at epoch' in rest
    found = checkpoint.read(tmp_path / 'dla60x_checkpoint.pth.tar')
    assert found.epoch or found.position['step'] >= 4


def test_script_finds_its_packages_from_elsewhere_and_ends_with_one_line(tmp_path):
    with start(ROOT / 'segment.py', '--exp=x', '--data=no', cwd=tmp_path, PYTHONPATH='') as process:
        ended = process.communicate(timeout=300)
    assert (process.returncode, *ended) == (1, '', 'error: no list no/VOC2012/list/val.txt\n')


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


def test_names_that_are_no_unicode_are_printed():
    printed = io.TextIOWrapper(io.BytesIO(), 'utf-8')
    with redirect_stdout(printed):
        exit_cleanly(lambda: print(os.fsdecode(b'\xff.jpg'), flush=True))
    assert printed.buffer.getvalue() == b'\\udcff.jpg\n'
