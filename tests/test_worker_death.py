"""A loader's worker that dies, as one that took too much memory does: one line, and a run that can go on."""

import multiprocessing
import os
import re
import signal

from tests.conftest import stop_at
from tests.runs import LAST, assert_same, content
from utils import checkpoint


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
    assert re.match(r'error: DataLoader worker \(pid \d+\) exited with status 3; if memory ran out', told), told


def test_worker_that_dies_while_a_checkpoint_is_written_does_not_spoil_it(classify, tmp_path, capsys, monkeypatch):
    sync, dead = os.fsync, []

    def sync_after_a_death(handle):
        if not dead:
            dead.extend(multiprocessing.active_children())
            for worker in dead:
                worker.kill()
                worker.join()
        sync(handle)

    monkeypatch.setattr(os, 'fsync', sync_after_a_death)
    told = classify.error(capsys, '--epochs', 1, '--save-steps', 1, '--output', tmp_path, '-j', 1)
    assert told.startswith(
        f'error: DataLoader worker (pid {dead[0].pid}) is killed by signal: Killed; if memory ran out'
    )
    assert checkpoint.read(tmp_path / LAST).position['step'] > 0
