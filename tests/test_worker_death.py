"""A loader's worker that dies, as one that took too much memory does: one line, and a run that can go on."""

import os
import re
import signal
from unittest.mock import Mock

import pytest
from torch.utils.data import DataLoader

from tests.conftest import stop_at
from tests.runs import LAST, assert_same, content


@pytest.fixture(autouse=True)
def handler():
    """PyTorch sets one for SIGCHLD once a process, and a loss takes it away."""
    next(iter(DataLoader([0], num_workers=1)))
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, handler)


def test_dead_worker_is_one_line_and_the_run_goes_on(classify, tmp_path, capsys, monkeypatch):
    """Killed while training, and one that ends itself in an evaluation."""
    arguments, whole = ('--epochs', 1, '--save-steps', 1, '--output', tmp_path), tmp_path / 'whole'
    classify(*arguments[:-1], whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 13, end=lambda: os.kill(os.getpid(), signal.SIGKILL))
        told = classify.error(capsys, *arguments, '-j', 1)
    lost = r'error: DataLoader worker \(pid \d+\) is killed by signal: Killed; if memory ran out, .*--auto-resume goes'
    assert re.match(lost, told)
    classify(*arguments, '--auto-resume')
    assert_same(content(tmp_path), content(whole))
    stop_at(monkeypatch, 13, end=lambda: os._exit(3))
    told = classify.error(capsys, '--evaluate', '--resume', whole / LAST, '-j', 1)
    ways = 'with status|unexpectedly with exit code'
    assert re.match(rf'error: DataLoader worker \(pid \d+\) exited ({ways}) 3; if memory ran out', told), told


def test_worker_that_dies_while_a_checkpoint_is_written_is_named(classify, tmp_path, capsys, monkeypatch):
    death = RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')
    monkeypatch.setattr(os, 'fsync', Mock(side_effect=death))
    told = classify.error(capsys, '--output', tmp_path)
    assert told.startswith('error: DataLoader worker (pid 7) is killed by signal: Killed; if memory ran out, ')
