"""The scripts train as the reference's did: its own loops, recorded in float64 (tests/golden/golden_training.json.gz).

The scripts run as a user calls them, with nothing put in their place but the data, the initial weights, the double
precision and the files that would be written. What is compared how, the recording's `about` says.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

import classify
import docker_classify
import models
import multilabel_classify
import segment
from tests.conftest import Script
from tests.reference import TOLERANCE, load, load_weights
from utils import checkpoint, trainer
from utils.device import DTYPES
from utils.loader import MEAN, STD, DeviceLoader
from utils.logger import Log
from utils.segmentation import Target
from utils.trainer import Learner

CASES = load('golden_training')['cases']
QUICK = 'classify/dla60x/g1', 'docker_classify/resnext50_elastic', 'multilabel/dla60x', 'segment/resnext50_elastic'
SCRIPTS = {script.__name__: script for script in (classify, docker_classify, multilabel_classify, segment)}
HELD_OUT = 6  # samples of the classifiers' test sets


class Samples(Dataset):
    """Samples of a recording, with the names of its classes where the classifying scripts look for them."""

    def __init__(self, images: Tensor, targets: list, classes: int):
        self.images, self.targets, self.classes = images, targets, [str(number) for number in range(classes)]
        self.table = SimpleNamespace(classes=self.classes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


def samples(case: dict) -> list[Samples]:
    """The training set, and for a classifier the test set."""
    script, side, voc = case['script'], case['side'], case['script'] == 'segment'
    random, total = np.random.RandomState(case['seed']), case['samples'] + (0 if voc else HELD_OUT)
    images = random.randint(0, 256, (total, 3, side, side)).astype(np.uint8)
    if voc:
        values = random.randint(0, 21, (total, side, side)).astype(np.uint8)
        inside = np.ones((total, 1, side, side), np.uint8)
        for number in range(total):  # padding above
            images[number, :, : 3 * number], inside[number, :, : 3 * number], values[number, : 3 * number] = 0, 0, 255
    elif script == 'multilabel_classify':
        values = random.uniform(size=(total, 3, 80)) < 0.1
    else:
        values = random.randint(0, 1000, total)
    assert (images.sum(), values.sum()) == (case['images_sum'], case['targets_sum'])
    if voc:
        targets = [Target(torch.from_numpy(labels), number) for number, labels in enumerate(values)]
        return [Samples(torch.from_numpy(np.concatenate([images, inside], 1)), targets, 21)]
    images, targets = torch.from_numpy(images), list(torch.from_numpy(values))
    end, classes = case['samples'], 80 if values.ndim > 1 else 1000
    return [Samples(images[part], targets[part], classes) for part in (slice(end), slice(end, None))]


def put_in_place(patch: pytest.MonkeyPatch, case: dict) -> None:
    """The recording's data, weights and precision for the scripts' own; neither checkpoints of 400 MB nor curves."""
    train, *val = samples(case)
    patch.setattr(classify, 'open_train_and_val', lambda *_: (train, *val))
    patch.setattr(multilabel_classify, 'open_part', lambda folder, part, *_: train if part == 'train' else val[0])
    patch.setattr(segment, 'open_scenes', lambda *_: train)
    nets = models.segmenters if case['script'] == 'segment' else models.classifiers
    build = nets[case['arch']]
    patch.setitem(nets, case['arch'], lambda *args, **kwargs: load_weights(build(*args, **kwargs).double()))
    patch.setitem(DTYPES, 'off', torch.float64)
    patch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    patch.setattr(DeviceLoader, 'normalise', normalised)
    patch.setattr(checkpoint, 'write', lambda *_: None)
    patch.setattr(Log, 'draw', lambda _: None)


def normalised(_: DeviceLoader, images: Tensor) -> Tensor:
    """In float64; 0 where a fourth channel is."""
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    values = (images[:, :3].double() / 255 - mean) / std
    return values * images[:, 3:] if images.shape[1] == 4 else values


class Watch:
    """What a script did: losses, updates, tests; and the learner that it did it with."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.losses, self.updates, self.tests, self.learner = [], [], [], None
        backward, evaluate = Learner.backward, trainer.evaluate

        def noted_backward(learner, loss):
            self.learner = learner
            self.losses.append(loss.item())
            backward(learner, loss)

        def noted_evaluate(*args):
            self.tests.append(evaluate(*args))
            return self.tests[-1]

        patch.setattr(Learner, 'backward', noted_backward)
        patch.setattr(trainer, 'evaluate', noted_evaluate)

    def note_update(self, optimizer: torch.optim.Optimizer, *_) -> None:
        """What the optimizer is about to do."""
        gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        self.updates.append(
            {
                'after_micro_batch': len(self.losses),
                'lr': [group['lr'] for group in optimizer.param_groups],
                'weight_decay': [group['weight_decay'] for group in optimizer.param_groups],
                'grad_norm': torch.stack([gradient.norm() for gradient in gradients]).norm().item(),
            }
        )


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Trains as a recorded case did."""

    def train(case: dict) -> Watch:
        voc, watch = case['script'] == 'segment', Watch(monkeypatch)
        put_in_place(monkeypatch, case)
        first = '--exp=x' if voc else tmp_path
        own = '--train' if voc else f'--image-size {case["side"]} --start-epoch {case["start_epoch"]}'
        shared = f'-a {case["arch"]} --epochs {case["epochs"]} --workers 0 --device cpu --output {tmp_path} {own}'
        hook = register_optimizer_step_pre_hook(watch.note_update)
        try:
            Script(SCRIPTS[case['script']], first, shared)(*case['arguments'])
        finally:
            hook.remove()
        return watch

    return train


def close(value: float, recorded: float, scale: float | None = None) -> bool:
    """Whether the value is the recorded one, to the tolerance of `scale`, by default of itself."""
    return abs(value - recorded) <= TOLERANCE * (abs(recorded) if scale is None else scale)


def differing(tensors: dict[str, Tensor], recorded: dict[str, list[float]], factor: float = 1) -> dict:
    """The tensors, times a factor, whose sum, sum of squares or first value is not the recorded one."""
    assert tensors.keys() == recorded.keys()
    wrong = {}
    for name, (total, squares, first) in recorded.items():
        values = tensors[name].detach().flatten() * factor
        found = values.sum().item(), values.square().sum().item(), values[0].item()
        scales = (len(values) * squares) ** 0.5, None, (squares / len(values)) ** 0.5
        if not all(map(close, found, recorded[name], scales)):
            wrong[name] = found, (total, squares, first)
    return wrong


@pytest.mark.parametrize('name', [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_training_is_the_references(trained, name):
    case = CASES[name]
    watch, k = trained(case), case['k']
    assert watch.losses == pytest.approx(case['losses'], rel=TOLERANCE)
    assert len(watch.updates) == len(case['updates'])
    for found, recorded in zip(watch.updates, case['updates'], strict=True):
        assert found['after_micro_batch'] == recorded['after_micro_batch']
        assert found['lr'] == pytest.approx([k * rate for rate in recorded['lr']], rel=TOLERANCE)
        assert found['weight_decay'] == pytest.approx([decay / k for decay in recorded['weight_decay']], rel=TOLERANCE)
        assert k * found['grad_norm'] == pytest.approx(recorded['grad_norm'], rel=TOLERANCE)
    for found, recorded in zip(watch.tests if case['test'] else [], case['test'], strict=True):
        assert {key: found[key] for key in recorded} == pytest.approx(recorded, rel=TOLERANCE)
    assert_same_net(watch.learner, case)


def assert_same_net(learner: Learner, case: dict) -> None:
    """Weights, running statistics where they are used, and momentum; k times ours is the reference's."""
    unused = {f'{norm}.{key}' for norm in case['unused_norms'] for key in ('running_mean', 'running_var')}
    state = {name: value for name, value in learner.model.state_dict().items() if 'tracked' not in name}
    assert not differing(
        {name: value for name, value in state.items() if name not in unused},
        {name: value for name, value in case['final'].items() if name not in unused},
    )
    momenta = {
        name: learner.optimizer.state[parameter]['momentum_buffer']
        for name, parameter in learner.model.named_parameters()
        if learner.optimizer.state.get(parameter)
    }
    assert not differing(momenta, case['final_momentum'], case['k'])
    still = {name for name, _ in learner.model.named_parameters()} - momenta.keys()
    assert still == {*case['no_gradient'], *case['not_trained']}
