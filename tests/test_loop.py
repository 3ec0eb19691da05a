"""The parts of the loop: accumulation, order and augmentation of samples, errors counted, schedules, signals."""

import copy
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch.nn.functional import cross_entropy
from torchvision import transforms

from tests.conftest import TinyNet
from utils.accumulation import micro_batches, smallest_part
from utils.batches import EvalBatches, TrainBatches
from utils.compute import Compute
from utils.data import DeviceLoader, Seeded
from utils.errors import UserError
from utils.finite import FiniteLoss
from utils.image_folder import RandomCrop, central_crop, open_folder
from utils.learner import Learner
from utils.metrics import TopErrors
from utils.reporting import Log
from utils.schedules import step_decay

ROOT = Path(__file__).parent.parent
CPU = Compute('cpu')


def updated(model, images, targets, accumulate):
    """The weights after one update from `accumulate` equal micro-batches, batch norm frozen."""
    model = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.01)
    learner = Learner(model, model, cross_entropy, CPU, optimizer, lambda epoch: 0.1, accumulate)
    learner.forward = lambda images, targets: (None, cross_entropy(model(images), targets))  # stays in float64
    for step in range(accumulate):
        chosen = slice(step * len(images) // accumulate, (step + 1) * len(images) // accumulate)
        learner.backward(learner.forward(images[chosen], targets[chosen])[1])
        if learner.completes_update(step):
            learner.update(0.1)
    return model.state_dict()


def test_four_micro_batches_equal_one_batch():
    torch.manual_seed(0)
    model = TinyNet(5).double()
    images, targets = torch.randn(16, 3, 32, 32).double(), torch.randint(5, (16,))
    one, four = (updated(model, images, targets, accumulate) for accumulate in (1, 4))
    assert not torch.equal(one['fc.weight'], model.state_dict()['fc.weight'])
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-12, atol=1e-14)


def test_micro_batches_stand_for_gpus():
    assert micro_batches(256, 8, 1, training=True) == (32, 8)
    assert micro_batches(256, 8, 2, training=True) == (64, 4)
    assert micro_batches(256, 8, 8, training=True) == (256, 1)
    assert micro_batches(250, 8, 3, training=False) == (125, 2)
    assert micro_batches(4, 8, 1, training=False) == (1, 8)
    with pytest.raises(UserError, match='--num-gpus 8 is no multiple of the 3 devices that are visible'):
        micro_batches(256, 8, 3, training=True)


@pytest.mark.parametrize('images, devices', [(16, 4), (10, 4), (3, 2), (6, 8), (1, 1), (13, 4)])
def test_smallest_part_is_that_of_data_parallel(images, devices):
    assert smallest_part(images, devices) == min(map(len, torch.arange(images).chunk(devices)))


def test_a_job_is_told_of_its_processes(monkeypatch):
    monkeypatch.setattr('utils.accumulation.is_distributed', lambda: True)
    with pytest.raises(UserError, match='--num-gpus 8 is no multiple of the 16 processes$'):
        micro_batches(256, 8, 16, training=True)


def test_epoch_holds_every_sample_once_in_a_new_order():
    batches = TrainBatches(23, 4, seed=1, smallest=1)
    orders = []
    for epoch in 0, 1:
        batches.seek(epoch)
        orders.append([key for batch in batches for key in batch])
        assert sorted(orders[-1]) == [(epoch, index) for index in range(23)]
    assert [index for _, index in orders[0]] != [index for _, index in orders[1]]
    assert len(batches) == 6


def test_epoch_goes_on_from_any_batch():
    batches = TrainBatches(23, 4, seed=1)
    batches.seek(3)
    whole = list(batches)
    assert len(whole) == len(batches) == 5
    batches.seek(3, 2)
    assert list(batches) == whole[2:]


class Noise:
    """Five samples that are random numbers."""

    def __getitem__(self, index):
        return torch.rand(3)

    def __len__(self):
        return 5


def test_augmentation_depends_on_seed_epoch_and_sample_alone():
    before = torch.random.get_rng_state()
    drawn = {(seed, *key): Seeded(Noise(), seed)[key] for seed in (0, 1) for key in ((0, 1), (1, 0), (0, 0), (1, 1))}
    assert len({tuple(value.tolist()) for value in drawn.values()}) == 8
    assert torch.equal(Seeded(Noise(), 1)[1, 0], drawn[1, 1, 0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loader_gives_what_torchvisions_transforms_give(folder):
    reference = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    own, theirs = (open_folder(folder / 'val', transform) for transform in (central_crop(224), reference))
    for images, targets in DeviceLoader(own, EvalBatches([range(len(own))], 18), CPU, 0):
        assert torch.equal(images, torch.stack([image for image, _ in theirs]))
        assert targets.tolist() == theirs.index.labels().tolist()
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_loader_for_a_gpu_works_one_batch_ahead_and_loses_none(folder, monkeypatch):
    """With streams that do nothing: there is no GPU here. Each batch is waited for before it is handed out."""
    waits = []
    stream = type('Stream', (), {'wait_stream': lambda self, other: waits.append(other)})
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: stream())
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda tensor, stream: None)
    images = open_folder(folder / 'val', central_crop(32))
    loader = DeviceLoader(images, EvalBatches([range(18)], 4), CPU, 0)
    plain = list(loader)
    loader.stream = stream()  # the one of all epochs
    loader.stream.device = CPU.device
    for number, (batch, twin) in enumerate(zip(loader, plain, strict=True), 1):
        assert torch.equal(batch[0], twin[0])
        assert torch.equal(batch[1], twin[1])
        assert len(waits) == number


def test_training_crops_are_flipped_parts(folder):
    crop = open_folder(folder / 'train', RandomCrop(32))
    drawn = torch.stack([Seeded(crop, 0)[epoch, 0][0] for epoch in range(20)])
    assert drawn.shape == (20, 3, 32, 32)
    assert drawn.dtype == torch.uint8
    assert len(drawn.unique(dim=0)) == 20


def test_errors_equal_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(50, 9, generator=generator), torch.randint(9, (50,), generator=generator)
    metrics = TopErrors(torch.device('cpu'))
    for part in slice(0, 32), slice(32, 50):
        metrics.update(cross_entropy(outputs[part], targets[part]), outputs[part], targets[part])
    labels = range(9)
    expected = {
        'loss': log_loss(targets, outputs.double().softmax(1), labels=labels),
        'err1': 100 - 100 * top_k_accuracy_score(targets, outputs, k=1, labels=labels),
        'err5': 100 - 100 * top_k_accuracy_score(targets, outputs, k=5, labels=labels),
    }
    assert metrics.compute() == pytest.approx(expected, rel=1e-6)
    other = TopErrors(torch.device('cpu'))
    other.load_state_dict(metrics.state_dict())
    assert other.compute() == metrics.compute()


def test_five_classes_or_fewer_have_no_top_five_error():
    metrics = TopErrors(torch.device('cpu'))
    metrics.update(torch.tensor(1.0), torch.eye(4), torch.tensor([1, 2, 3, 0]))
    assert metrics.compute() == {'loss': 1.0, 'err1': 100.0, 'err5': 0.0}


def test_learning_rate_of_the_paper():
    rates = [step_decay(0.1, epoch, 30) for epoch in (0, 29, 30, 59, 60, 90, 119)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.0001, 0.0001])


def test_first_loss_that_is_not_finite_is_named():
    finite = FiniteLoss(torch.device('cpu'))
    finite.note(torch.tensor(2.0), 4, 0)
    finite.check('go back')
    for step, loss in enumerate([1.0, float('inf'), 1.0, float('nan')]):
        finite.note(torch.tensor(loss), 4, step)
    with pytest.raises(UserError, match='the loss is not finite at epoch 4, step 1; go back'):
        finite.check('go back')


@pytest.mark.parametrize('amp, dtype', [('off', torch.float32), ('bf16', torch.bfloat16)])
def test_amp_runs_the_convolutions_in_its_precision(amp, dtype):
    compute = Compute('cpu', amp)
    model = compute.place(TinyNet(3))
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert compute.place_for_test(model).conv1.weight.dtype == dtype


def test_no_channels_last():
    model = Compute('cpu', channels_last=False).place(TinyNet(3))
    assert model.conv1.weight.is_contiguous()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(number):
    code = f"""
import os, time
from utils.interrupt import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), {number}); assert stop.received == {number}; print('noted', flush=True)
    os.kill(os.getpid(), {number}); time.sleep(60)
"""
    ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stdout) == (-number, 'noted\n')


def test_workers_outlive_a_signal_to_all_and_end_with_the_parent():
    code = """
import os, signal, torch
from utils.interrupt import obey_parent_only
class Pids(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index):
        if index == 1: os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)
        return index
batches = iter(torch.utils.data.DataLoader(Pids(), num_workers=1, worker_init_fn=obey_parent_only))
print([int(next(batches)) for _ in range(3)], flush=True)
batches._workers[0].terminate()
batches._workers[0].join(30)
print(batches._workers[0].is_alive())
os._exit(0)
"""
    ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.stdout == '[0, 1, 2]\nFalse\n', ended.stderr
    assert os.name == 'posix'


def test_log_survives_a_cut_off_line(tmp_path):
    log = Log(tmp_path)
    log.note(epoch=0, train={'loss': 2.0})
    with open(log.path, 'a') as file:
        file.write('{"epoch": 1, "tra')
    log.note(epoch=1, train={'loss': 1.0})
    log.note(epoch=1, train={'loss': 0.5})
    assert [(record['epoch'], record['train']['loss']) for record in log.epochs()] == [(0, 2.0), (1, 0.5)]
    log.draw()
    assert log.picture.stat().st_size > 1000
