"""A loader's worker that dies, as one that took too much memory does: one line, and a run that can go on."""

import os
import re
import signal

import pytest
import torch

from tests.runs import LAST, assert_same, content
from utils import image_folder

LOST = r'error: DataLoader worker \(pid \d+\) is killed by signal: Killed; if memory ran out, .*--auto-resume goes on'


@pytest.fixture(autouse=True)
def handler():
    """PyTorch sets its handler once a process: a loss takes it away, and other tests need it."""
    next(iter(torch.utils.data.DataLoader([0], num_workers=1)))
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def die_at(monkeypatch, call, end):
    """Let the first worker end at the picture counted `call` that it opens."""
    load, opened = image_folder.open_image, []

    def deadly(path):
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            opened.append(path)
            if len(opened) == call and worker.id == 0:
                end()
        return load(path)

    monkeypatch.setattr(image_folder, 'open_image', deadly)


def test_killed_worker_is_one_line_and_the_run_goes_on(classify, tmp_path, capsys, monkeypatch):
    classify('--output', tmp_path / 'whole')
    arguments = '--output', tmp_path / 'parts', '-j', 1, '--save-steps', 1
    with monkeypatch.context() as patch:
        die_at(patch, 20, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert re.match(LOST, classify.error(capsys, *arguments))
    classify(*arguments, '--auto-resume')
    assert_same(content(tmp_path / 'parts'), content(tmp_path / 'whole'))


def test_killed_worker_of_an_evaluation_is_one_line(classify, tmp_path, capsys, monkeypatch):
    classify('--output', tmp_path, '--epochs', 1)
    die_at(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert re.match(LOST, classify.error(capsys, '--evaluate', '--resume', tmp_path / LAST, '-j', 1))


def test_worker_that_ends_itself_is_one_line(classify, tmp_path, capsys, monkeypatch):
    die_at(monkeypatch, 3, lambda: os._exit(3))
    told = classify.error(capsys, '--output', tmp_path, '-j', 1)
    ways = 'with status|unexpectedly with exit code'
    assert re.match(rf'error: DataLoader worker \(pid \d+\) exited ({ways}) 3; if memory ran out', told), told
