"""A loader's worker that dies, as one that took too much memory does: one line, and a run that can go on."""

import os
import re
import signal

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from data import image_folder
from tests.conftest import TinyNet
from tests.runs import assert_same, content


@pytest.fixture
def die(monkeypatch):
    """Lets a worker end at the 13th picture that it opens."""
    next(iter(DataLoader([0], num_workers=1)))
    handler = signal.getsignal(signal.SIGCHLD)  # which PyTorch sets once a process, and a loss takes away
    load, opened = image_folder.open_image, []

    def set_up(end):
        def deadly(path):
            if get_worker_info():
                opened.append(path)
                if len(opened) == 13:
                    end()
            return load(path)

        monkeypatch.setattr(image_folder, 'open_image', deadly)

    yield set_up
    signal.signal(signal.SIGCHLD, handler)


def test_killed_worker_is_one_line_and_the_run_goes_on(classify, tmp_path, capsys, die):
    arguments = '--epochs', 1, '--save-steps', 1, '--output', tmp_path
    classify(*arguments[:-1], tmp_path / 'whole')
    die(lambda: os.kill(os.getpid(), signal.SIGKILL))
    lost = r'error: DataLoader worker \(pid \d+\) is killed by signal: Killed; if memory ran out, .*--auto-resume goes'
    assert re.match(lost, classify.error(capsys, *arguments, '-j', 1))
    classify(*arguments, '--auto-resume')
    assert_same(content(tmp_path), content(tmp_path / 'whole'))


def test_worker_of_an_evaluation_that_ends_itself_is_one_line(classify, tmp_path, capsys, die):
    torch.save(TinyNet(6).state_dict(), tmp_path / 'net')
    die(lambda: os._exit(3))
    told = classify.error(capsys, '--evaluate', '--resume', tmp_path / 'net', '-j', 1)
    ways = 'with status|unexpectedly with exit code'
    assert re.match(rf'error: DataLoader worker \(pid \d+\) exited ({ways}) 3; if memory ran out', told), told


@pytest.mark.usefixtures('die')
def test_worker_that_dies_while_a_checkpoint_is_written_is_named(classify, tmp_path, capsys, monkeypatch):
    def interrupted(_):
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')

    monkeypatch.setattr(os, 'fsync', interrupted)
    told = classify.error(capsys, '--output', tmp_path)
    assert told.startswith('error: DataLoader worker (pid 7) is killed by signal: Killed; if memory ran out, ')
