"""The scripts train as the reference's did: its own loops, recorded in float64 (tests/golden/golden_training.json.gz).

The scripts run as a user calls them, with nothing put in their place but the data, the initial weights, the double
precision and the files that would be written. What is compared how, the recording's `about` says.
"""

from importlib import import_module

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import models
from tests.conftest import Script
from tests.nets import assert_equal
from tools.check_gpu.golden import TOLERANCE, load, load_weights, normalized, samples, trajectory_errors, update_of
from utils import checkpoint, trainer
from utils.device import DTYPES
from utils.loader import DeviceLoader
from utils.logger import Log
from utils.step import TrainingStep

CASES = load('golden_training')['cases']
QUICK = 'classify/dla60x/g1', 'docker_classify/resnext50_elastic', 'multilabel/dla60x', 'segment/resnext50_elastic'


def put_in_place(patch: pytest.MonkeyPatch, case: dict) -> None:
    """The recording's data, weights and precision for the scripts' own; neither checkpoints of 400 MB nor curves."""
    train, *val = samples(case)
    patch.setattr('classify.open_sets', lambda _: (train, *val))
    patch.setattr('multilabel_classify.open_part', lambda folder, part, *_: train if part == 'train' else val[0])
    patch.setattr('segment.open_voc', lambda *_: train)
    nets = models.segmenters if case['script'] == 'segment' else models.classifiers
    build = nets[case['arch']]
    patch.setitem(nets, case['arch'], lambda *args, **kwargs: load_weights(build(*args, **kwargs).double()))
    patch.setitem(DTYPES, 'off', torch.float64)
    patch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    patch.setattr(DeviceLoader, 'normalize', lambda _, images: normalized(images))
    patch.setattr(checkpoint, 'write', lambda *_: None)
    patch.setattr(Log, 'draw', lambda _: None)


@pytest.mark.parametrize('name', [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_training_is_the_references(monkeypatch, tmp_path, name):
    case, trained, losses, updates, tests = CASES[name], [], [], [], []
    backward, evaluate = TrainingStep.backward, trainer.evaluate

    def noted_backward(training_step, loss):
        trained.append(training_step)
        losses.append(loss.item())
        backward(training_step, loss)

    put_in_place(monkeypatch, case)
    monkeypatch.setattr(TrainingStep, 'backward', noted_backward)
    monkeypatch.setattr(trainer, 'evaluate', lambda *args: tests.append(evaluate(*args)) or tests[-1])
    voc = case['script'] == 'segment'
    own = '--train' if voc else f'--image-size {case["side"]} --start-epoch {case["start_epoch"]}'
    shared = f'-a {case["arch"]} --epochs {case["epochs"]} --workers 0 --device cpu --output {tmp_path} {own}'
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: updates.append(update_of(optimizer, len(losses))))
    try:
        Script(import_module(case['script']), '--exp=x' if voc else tmp_path, shared)(*case['arguments'])
    finally:
        hook.remove()
    assert_equal(trajectory_errors(case, losses, updates, trained[-1]))
    for found, recorded in zip(tests if case['test'] else [], case['test'], strict=True):
        assert {key: found[key] for key in recorded} == pytest.approx(recorded, rel=TOLERANCE)
