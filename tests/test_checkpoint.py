"""Checkpoint files: every age is read, nothing in them is executed, a killed write loses nothing."""

import os
import resource

import numpy as np
import pytest
import torch

from tests.conftest import TinyNet
from utils import checkpoint
from utils.errors import UserError
from utils.restore import Identity, head_difference, load_optimizer, resume

NET = Identity('imagenet', 'tiny', [str(n) for n in range(5)])


def trained(classes=5, seed=0):
    """A TinyNet after one update, and its optimizer, which so holds momentum."""
    torch.manual_seed(seed)
    model = TinyNet(classes)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def released(model, optimizer):
    """The dict that the reference saved, its optimizer keyed by the parameters' ids as PyTorch did until 1.3."""
    state = optimizer.state_dict()
    ids = {position: 140_000_000_000_000 - 64 * position for position in state['param_groups'][0]['params']}
    group = {'lr': 0.1, 'momentum': 0.9, 'dampening': 0, 'weight_decay': 1e-4, 'nesterov': False}
    old = {
        'state': {ids[position]: value for position, value in state['state'].items()},
        'param_groups': [{**group, 'params': list(ids.values())}],
    }
    return {
        'epoch': 7,
        'arch': 'tiny',
        'state_dict': checkpoint.state_dict(model),
        'best_err1': torch.tensor(21.5),
        'optimizer': old,
    }


def same(left, right):
    """Whether two nets hold the same tensors, bit for bit."""
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(name == other and torch.equal(value, twin) for (name, value), (other, twin) in pairs)


@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize('wrapped', [False, True])
def test_released_file_is_resumed_with_its_momentum(tmp_path, zipped, wrapped):
    model, optimizer = trained()
    content = released(model, optimizer)
    if not wrapped:
        content['state_dict'] = model.state_dict()
    torch.save(content, tmp_path / 'old.pth.tar', _use_new_zipfile_serialization=zipped)
    found = checkpoint.read(tmp_path / 'old.pth.tar')
    assert (found.epoch, found.arch, found.best) == (7, 'tiny', {'best_err1': 21.5})
    fresh, its_optimizer = trained(seed=1)
    assert not same(fresh, model)
    assert head_difference(found, fresh, NET) == ''
    resume(fresh, found)
    load_optimizer(fresh, its_optimizer, found)
    assert same(fresh, model)
    for own, saved in zip(fresh.parameters(), model.parameters(), strict=True):
        own, saved = its_optimizer.state[own]['momentum_buffer'], optimizer.state[saved]['momentum_buffer']
        assert torch.equal(own, saved)


def test_file_of_torch_0_4_0_lacks_the_counters(tmp_path):
    model, _ = trained()
    state = {name: value for name, value in model.state_dict().items() if not name.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'bare')
    fresh, _ = trained(seed=1)
    resume(fresh, checkpoint.read(tmp_path / 'bare'))
    assert torch.equal(fresh.bn3.running_var, model.bn3.running_var)


def test_one_missing_counter_is_an_error(tmp_path):
    model, _ = trained()
    state = model.state_dict()
    del state['bn3.num_batches_tracked']
    torch.save(state, tmp_path / 'bare')
    with pytest.raises(UserError, match=r'missing: bn3\.num_batches_tracked'):
        resume(model, checkpoint.read(tmp_path / 'bare'))


def test_numpy_scalars_are_read(tmp_path):
    content = released(*trained()) | {'best_err1': np.float64(3.5), 'epoch': np.int64(2)}
    torch.save(content, tmp_path / 'new')
    found = checkpoint.read(tmp_path / 'new')
    assert (found.epoch, found.best) == (2, {'best_err1': 3.5})
    assert type(found.epoch) is int


def test_tensors_saved_on_a_gpu_are_read_on_the_cpu(tmp_path, monkeypatch):
    model, optimizer = trained()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
        torch.save(released(model, optimizer), tmp_path / 'gpu', _use_new_zipfile_serialization=False)
    assert b'cuda:0' in (tmp_path / 'gpu').read_bytes()
    fresh, _ = trained(seed=1)
    resume(fresh, checkpoint.read(tmp_path / 'gpu'))
    assert same(fresh, model)


class Hostile:
    """Unpickling it naively makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize('zipped', [False, True])
def test_hostile_pickle_is_refused_by_name_and_not_executed(tmp_path, zipped):
    content = {**released(*trained()), 'extra': Hostile(tmp_path / 'executed')}
    torch.save(content, tmp_path / 'bad', _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r'bad: refused, its pickle names posix\.mkdir'):
        checkpoint.read(tmp_path / 'bad')
    assert not (tmp_path / 'executed').exists()
    torch.load(tmp_path / 'bad', weights_only=False)
    assert (tmp_path / 'executed').exists(), 'the pickle was harmless: this test tests nothing'


@pytest.mark.parametrize('content', [b'', b'<html>404</html>', b'PK\x03\x04 cut off'])
def test_other_files_are_no_checkpoints(tmp_path, content):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(UserError, match='file: not a PyTorch checkpoint, or a damaged one'):
        checkpoint.read(tmp_path / 'file')


def test_cut_off_checkpoint_is_named(tmp_path):
    for zipped in (False, True):
        torch.save(released(*trained()), tmp_path / 'cut', _use_new_zipfile_serialization=zipped)
        whole = (tmp_path / 'cut').read_bytes()
        (tmp_path / 'cut').write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match='cut: not a PyTorch checkpoint, or a damaged one'):
            checkpoint.read(tmp_path / 'cut')


def test_missing_file_and_file_without_tensors_are_named(tmp_path):
    with pytest.raises(UserError, match='no checkpoint at .*nowhere'):
        checkpoint.read(tmp_path / 'nowhere')
    torch.save({'epoch': 3}, tmp_path / 'empty')
    with pytest.raises(UserError, match='empty: holds no state_dict'):
        checkpoint.read(tmp_path / 'empty')
    torch.save([1, 2], tmp_path / 'list')
    with pytest.raises(UserError, match='list: a list, not a checkpoint'):
        checkpoint.read(tmp_path / 'list')


@pytest.mark.parametrize(
    'change, told',
    [
        ({'epoch': 'seven'}, "its epoch is 'seven', not a whole number"),
        ({'epoch': float('nan')}, 'its epoch is nan, not a whole number'),
        ({'epoch': 10**400}, 'its epoch is a int, not a whole number from 0 on'),
        ({'epoch': -1}, 'its epoch is -1, not a whole number from 0 on'),
        ({'epoch': torch.zeros(1, dtype=torch.complex64)}, 'its epoch is a tensor of a kind that is not read'),
        ({'classes': 5}, 'its classes is 5, not a list'),
        ({'classes': ['ant', 5]}, r'its classes\[1\] is 5, not a name'),
        ({'seed': '0'}, "its seed is '0', not a whole number"),
        ({'scaler': 2.0}, 'its scaler is 2.0, not a dict'),
        ({'scaler': {'scale': None}}, 'its scaler.scale is None, not a finite number'),
        ({'position': 3}, 'its position is 3, not a dict'),
        ({'smooth_loss': '3'}, "its smooth_loss is '3', not a finite number"),
        ({'position': {'step': 3}}, 'its position has no plan, metrics'),
        ({'position': {'step': -1, 'plan': {}, 'metrics': {}}}, 'its position.step is -1, not a whole number'),
        ({'position': {'step': 3, 'plan': 5, 'metrics': {}}}, 'its position.plan is 5, not a dict'),
        ({'position': {'step': 3, 'plan': {}, 'metrics': {'loss': 'x'}}}, 'its position.metrics is a dict, not number'),
        ({'processes': [{'statistics': {}}]}, r'its processes\[0\] has no metrics'),
        ({'processes': [{'metrics': None}]}, r'its processes\[0\] has no statistics'),
        ({'state_dict': {0: torch.zeros(1)}}, 'holds no state_dict of named tensors'),
    ],
)
def test_values_of_other_kinds_are_told(tmp_path, change, told):
    torch.save(released(*trained()) | change, tmp_path / 'odd')
    with pytest.raises(UserError, match=f'odd: {told}'):
        checkpoint.read(tmp_path / 'odd')


def test_no_epoch_is_none_and_what_is_best_are_numbers(tmp_path):
    odd = {'epoch': None, 'best_model': 'x/y.ckpt', 'best_so_far': None, 3: 'three'}
    torch.save(released(*trained()) | odd, tmp_path / 'odd')
    found = checkpoint.read(tmp_path / 'odd')
    assert (found.epoch, found.best) == (None, {'best_err1': 21.5})


def in_child(action) -> int:
    """Run `action` in a forked process that ends with it; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    'point, written', [('torch.save', 'old'), ('os.fsync', 'old'), ('os.replace', 'old'), ('after', 'new')]
)
def test_killed_write_leaves_a_whole_file(tmp_path, monkeypatch, point, written):
    path = tmp_path / 'model.pth.tar'
    checkpoint.write({'state_dict': {'w': torch.zeros(9)}, 'arch': 'old'}, path)

    def cut_short(content, file):
        file.write(b'PK\x03\x04 the first half')
        file.flush()
        os._exit(9)

    def killed(*_):
        os._exit(9)

    def write_and_die():
        if point != 'after':
            target, name = (torch, 'save') if point == 'torch.save' else (os, point.split('.')[1])
            monkeypatch.setattr(target, name, cut_short if name == 'save' else killed)
        checkpoint.write({'state_dict': {'w': torch.ones(9)}, 'arch': 'new'}, path)
        os._exit(9)

    assert in_child(write_and_die) == 9
    found = checkpoint.read(path)
    assert found.arch == written
    assert torch.equal(found.state_dict['w'], torch.full((9,), float(written == 'new')))


def test_full_disk_is_one_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / 'model.pth.tar'
    checkpoint.write({'state_dict': {'w': torch.zeros(9)}, 'arch': 'old'}, path)

    def write_too_much():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            checkpoint.write({'state_dict': {'w': torch.ones(50_000)}, 'arch': 'new'}, path)
        except UserError as error:
            os._exit(7 if 'cannot write' in str(error) and str(path) in str(error) else 8)

    assert in_child(write_too_much) == 7
    assert checkpoint.read(path).arch == 'old'
    assert os.listdir(tmp_path) == ['model.pth.tar']
