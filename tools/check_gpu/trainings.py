"""The reference's trainings done again by the scripts, as a user calls them.

Nothing is put in their place but the recording's data, initial weights and double precision, and the files that would
be written. What is compared how, the recording's `about` says.
"""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, redirect_stdout
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import classify
import docker_classify
import models
import multilabel_classify
import segment
from tools.check_gpu.golden import Errors, load, load_weights, normalized, samples, trajectory_errors, update_of
from utils import checkpoint, trainer
from utils.device import DTYPES
from utils.loader import DeviceLoader
from utils.logger import Log
from utils.trainer import TrainingStep

SCRIPTS = {script.__name__: script for script in (classify, docker_classify, multilabel_classify, segment)}


def training_again(device: torch.device, name: str) -> Errors:
    """The errors of a recorded training's losses, updates, tests and final state."""
    case, losses, updates, tests, used = load('golden_training')['cases'][name], [], [], [], []
    backward, evaluate = TrainingStep.backward, trainer.evaluate

    def noted_backward(training_step: TrainingStep, loss: Tensor) -> None:
        used[:] = [training_step]
        losses.append(loss.item())
        backward(training_step, loss)

    def noted_evaluate(*args) -> dict:
        tests.append(evaluate(*args))
        return tests[-1]

    def note_update(optimizer: torch.optim.Optimizer, *_) -> None:
        updates.append(update_of(optimizer, len(losses)))

    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), ExitStack() as stack:
        stack.enter_context(patch.object(TrainingStep, 'backward', noted_backward))
        stack.enter_context(patch.object(trainer, 'evaluate', noted_evaluate))
        for stand_in in stand_ins(case):
            stack.enter_context(stand_in)
        stack.callback(register_optimizer_step_pre_hook(note_update).remove)
        run(case, folder, device)
    return trajectory_errors(case, losses, updates, tests, *used)


def stand_ins(case: dict) -> Iterator[AbstractContextManager]:
    """The recording's data, weights and precision for the scripts' own; neither checkpoints of 400 MB nor curves."""
    train, *val = samples(case)
    yield patch.object(classify, 'open_train_and_val', lambda *_: (train, *val))
    yield patch.object(multilabel_classify, 'open_part', lambda _, part, *__: train if part == 'train' else val[0])
    yield patch.object(segment, 'open_voc', lambda *_: train)
    nets = models.segmenters if case['script'] == 'segment' else models.classifiers
    build = nets[case['arch']]
    yield patch.dict(nets, {case['arch']: lambda *args, **kwargs: load_weights(build(*args, **kwargs).double())})
    yield patch.dict(DTYPES, off=torch.float64)
    yield patch.object(Tensor, 'float', Tensor.double)
    yield patch.object(DeviceLoader, 'normalize', lambda _, images: normalized(images))
    yield patch.object(checkpoint, 'write', lambda *_: None)
    yield patch.object(Log, 'draw', lambda _: None)


def run(case: dict, folder: str, device: torch.device) -> None:
    """Call the case's script with the arguments of its recording."""
    script, shared = SCRIPTS[case['script']], f'-a {case["arch"]} --epochs {case["epochs"]} --workers 0'.split()
    if case['script'] == 'segment':
        own = ['--exp=x', '--train']
    else:
        own = [folder, f'--image-size={case["side"]}', f'--start-epoch={case["start_epoch"]}']
    args = script.make_parser().parse_args([*own, *shared, '--output', folder, *case['arguments']])
    args.device = str(device)  # a number, too, where there are several
    script.main(args)
