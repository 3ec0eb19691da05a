"""The parts of the loop: accumulation, order of samples, loading, precision, signals, the log and its curves."""

import multiprocessing
import os
import signal
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import transforms

from data.image_folder import ImageFolder, eval_transform
from tests.checkpoints import killed_at
from utils import logger
from utils.device import Compute
from utils.errors import UserError
from utils.loader import DeviceLoader, EvalBatchSampler, TrainBatchSampler, micro_batches
from utils.logger import Log, draw_curves
from utils.signals import SignalHandler, worker_init_fn

CPU = Compute('cpu')


def test_micro_batches_stand_for_gpus():
    assert micro_batches(256, 8, 1, training=True) == (32, 8)
    assert micro_batches(256, 8, 2, training=True) == (64, 4)
    assert micro_batches(256, 8, 8, training=True) == (256, 1)
    assert micro_batches(250, 8, 3, training=False) == (125, 2)
    assert micro_batches(4, 8, 1, training=False) == (1, 8)
    with pytest.raises(UserError, match='--num-gpus 8 is no multiple of the 3 devices that are visible$'):
        micro_batches(256, 8, 3, training=True)


def test_batches_are_of_the_seed_and_the_last_is_left_out_where_it_or_a_devices_part_is_too_small():
    assert [len(TrainBatchSampler(n, 16, 0)) for n in (31, 32, 33)] == [1, 2, 2]
    assert [len(TrainBatchSampler(n, 16, 0, smallest=2)) for n in (32, 33, 34)] == [2, 2, 3]
    assert [len(batch) for batch in TrainBatchSampler(34, 16, 0, smallest=2)] == [16, 16, 2]
    assert [len(TrainBatchSampler(13, 4, 0, smallest=1, world=processes)) for processes in (1, 2)] == [4, 3]
    assert list(TrainBatchSampler(16, 16, 0)) != list(TrainBatchSampler(16, 16, 1))
    of_four = [len(TrainBatchSampler(16 + rest, 16, 0, smallest=2, devices=4)) for rest in range(16)]
    smallest = [min(map(len, torch.arange(rest).chunk(4))) for rest in range(16)]
    assert of_four == [1 + (part >= 2) for part in smallest]
    assert smallest[5] == 1  # 2, 2 and 1


@pytest.mark.parametrize('ahead', [False, True])
def test_loader_gives_what_torchvisions_transforms_give(folder, monkeypatch, ahead):
    """On GPUs batches are made ahead, on a stream, here of a mock, and each is waited for before it is handed out."""
    constants = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    reference = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), constants]
    theirs = ImageFolder(folder / 'val', transforms.Compose(reference))
    loader = DeviceLoader(ImageFolder(folder / 'val', eval_transform(224)), EvalBatchSampler([range(18)], 4), CPU, 0)
    stream, found = MagicMock(device=CPU.device), []
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: stream)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda tensor, stream: None)
    loader.stream = stream if ahead else None
    for number, (images, targets) in enumerate(loader, 1):
        assert stream.wait_stream.call_count == number * ahead
        assert images.is_contiguous(memory_format=torch.channels_last)
        found += zip(images, targets.tolist(), strict=True)
    assert [label for _, label in found] == theirs.labels.tolist()
    assert all(torch.equal(own[0], their[0]) for own, their in zip(found, theirs, strict=True))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('times', [1, 2])
@pytest.mark.parametrize('launched', [False, True])
def test_first_signal_is_noted_and_a_second_ends_the_process_at_once(monkeypatch, number, times, launched):
    """But under torch.distributed.run, which tells its processes again what Slurm has told all of them."""
    monkeypatch.setenv('TORCHELASTIC_RUN_ID' if launched else 'NOTHING', '1')

    def signal_itself():
        with SignalHandler() as stop:
            for _ in range(times):
                os.kill(os.getpid(), number)
            assert stop.received == number and (launched or times == 1)

    process = multiprocessing.get_context('fork').Process(target=signal_itself)
    process.start()
    process.join(50)
    assert process.exitcode == (0 if launched or times == 1 else -number)


def signalled(samples):
    """The sample; signals to the worker that loads the second."""
    if samples == [1]:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    return samples[0]


def test_workers_outlive_a_signal_to_all_and_end_with_the_parent():
    batches = iter(DataLoader(range(4), num_workers=1, collate_fn=signalled, worker_init_fn=worker_init_fn))
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    (worker,) = batches._workers
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


# log.jsonl and curves.png: no curve is lost to a kill, no run to a spoiled line

SPOILED = [
    *(b'not json', b'\xff\xfe\x00 bytes of another text', b'7', b'[{"epoch": 0}]', b'{"other": 1}', b''),
    *(b'[' * 100_000, b'{"epoch": %d}' % 10**99, b'{"epoch": 0, "train": 5}', b'{"args": {}, "from_epoch": null}'),
]


@pytest.mark.parametrize('line', SPOILED, ids=range(len(SPOILED)))
@pytest.mark.parametrize('end', [b'\n', b''], ids=['whole', 'cut off'])
def test_spoiled_line_costs_that_line(tmp_path, line, end):
    log = Log(tmp_path)
    log.note(args={}, checkpoint='a', from_epoch=0)
    for epoch in range(2):
        with open(log.path, 'ab') as file:
            file.write(line + end)
        log.note(epoch=epoch, train={'loss': 1.0})
    assert [record['epoch'] for record in log.epochs()] == [0, 1]


def test_curves_are_of_one_run(tmp_path):
    log = Log(tmp_path)
    for name, begin, losses, told in [
        ('a', 0, [9, 8, 7], [9, 8, 7]),
        ('b', 0, [6], [6]),
        ('b', 1, [5], [6, 5]),
        ('a', 3, [4], [9, 8, 7, 4]),
        ('a', 1, [3], [9, 3]),  # from an older checkpoint
        ('a', 0, [], []),
    ]:
        log.note(args={}, checkpoint=name, from_epoch=begin)
        for epoch, loss in enumerate(losses, begin):
            log.note(epoch=epoch, train={'loss': loss})
        assert [record['train']['loss'] for record in log.epochs()] == told


def test_curves_are_drawn_at_a_start_and_after_each_epoch(classify, tmp_path, monkeypatch, capsys):
    """Those of a run that was killed before it drew them lack an epoch."""
    arguments = '--output', tmp_path, '--auto-resume', '--epochs'
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, os, 'replace', 1, 'curves.png')
        classify(*arguments, 1)
    assert not (tmp_path / 'curves.png').exists()
    drawn, draw = [], Log.draw
    monkeypatch.setattr(Log, 'draw', lambda log: drawn.append(len(log.epochs())) or draw(log))
    classify(*arguments, 2)
    assert drawn == [1, 2]
    classify(*arguments, 2)
    assert '=> nothing to train: 2 epochs are done, and --epochs is 2\n' in capsys.readouterr().out
    assert drawn == [1, 2, 2]


def test_curves_show_what_there_is(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(logger, 'write_figure', lambda figure, *_, **__: drawn.extend(figure.axes))
    records = [{'epoch': n, 'train': {'loss': value}} for n, value in enumerate([1.0, 'x', None, 0.5, {}])]
    draw_curves(records, tmp_path / 'curves.png')
    (panel,) = drawn
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ['train']
    assert panel.lines[0].get_xydata().tolist() == [[1, 1], [4, 0.5]]
    assert all(tick == int(tick) for tick in panel.get_xticks())


@pytest.mark.parametrize('values', [[], ['x'], [float('nan')], [float('inf'), 1.0], [1e300, -1e300]])
def test_whatever_the_log_holds_is_drawn_or_left_out(tmp_path, values):
    draw_curves([{'epoch': 2**62 * n, 'train': {'loss': v}} for n, v in enumerate(values)], tmp_path / 'curves.png')
