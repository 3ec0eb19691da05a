"""Checks of what trainings come to: the reference's outputs, gradients and trainings; and a killed one that goes on."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, redirect_stdout
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook

import classify
import docker_classify
import models
import multilabel_classify
import segment
from tools.benchmark.nets import training_step_of
from tools.check_gpu import golden
from tools.check_gpu.nets import CLASSES, compute_of, filled, gradients_of, noise_set, recomputing
from tools.check_gpu.result import Result, at_most, distance
from utils import checkpoint, trainer
from utils.checkpoint import CheckpointMeta
from utils.device import DTYPES
from utils.loader import DeviceLoader
from utils.logger import Log
from utils.metrics import TopKError
from utils.run import Files
from utils.trainer import Evaluator, Trainer, TrainingStep

FAMILIES = (  # one net of each, and of the segmenters
    'resnext50_elastic',
    'se_resnext50_elastic',
    'dla60x_elastic',
    'densenet201_elastic',
    'resnext50_elastic/seg',
    'dla60x_elastic/seg',
)
TRAININGS = 'classify/dla60x/g1', 'docker_classify/resnext50_elastic', 'segment/resnext50_elastic'
# Of outputs and gradients. On a CPU the worst are 1e-6 and 1e-4 in float32, 8e-3 and 6e-2 in bfloat16.
BOUNDS = {'off': (1e-4, 1e-2), 'bf16': (0.03, 0.2)}
SCRIPTS = {script.__name__: script for script in (classify, docker_classify, multilabel_classify, segment)}
LAST = 'last.pth'


def golden_in_float64(device: torch.device, net: str) -> Result:
    """Outputs, those of the fused copy, and a training step."""
    model = compute_of(device).place(filled(net, dtype=torch.float64, **recomputing(net)))
    return at_most(golden.TOLERANCE, golden.evaluation_errors(model, net) | golden.training_errors(model, net))


def golden_in_less(device: torch.device, net: str) -> Result:
    """The fused output against the recorded one, and all gradients together against those in float64; in float32 and,
    beside it, bfloat16."""
    exact, message, holds = gradients(device, net, torch.float64), [], True
    for amp, bounds in BOUNDS.items():
        errors = output_error(device, net, amp), distance(gradients(device, net, torch.float32, amp), exact)
        holds &= all(error <= bound for error, bound in zip(errors, bounds, strict=True))
        message.append(f'{amp} {errors[0]:.1e}, {errors[1]:.1e}')
    bounds = '; '.join(f'{amp} {output:.0e}, {gradient:.0e}' for amp, (output, gradient) in BOUNDS.items())
    return Result(holds, '; '.join(message), f'output, gradients at most: {bounds}')


def output_error(device: torch.device, net: str, amp: str) -> float:
    """That of a test as the scripts do it."""
    recorded, compute = golden.load('golden')[net], compute_of(device, amp)
    with torch.inference_mode():
        test = Evaluator(compute.place(filled(net)), compute).load()
        output = test(compute.images(golden.images(**recorded['input']).float()))
    return golden.output_error(output, recorded['eval'])


def gradients(device: torch.device, net: str, dtype: torch.dtype, amp: str = 'off') -> list[Tensor]:
    """Those of the recorded training step but for batch norms, which use their running statistics: over those of two
    images, gradients of these weights are chaotic, a hundredth off in float32 and all of it in bfloat16."""
    model, images = filled(net, dtype=dtype, **recomputing(net)), golden.images(**golden.load('golden')[net]['input'])
    step = training_step_of(model, compute_of(device, amp), lambda outputs, _: golden.recorded_loss(net, outputs))
    return gradients_of(step, images.to(dtype))


def trajectory(device: torch.device, name: str) -> Result:
    """A training in float64: losses, updates, tests, final weights and momentum."""
    return at_most(golden.TOLERANCE, training_again(device, name))


def training_again(device: torch.device, name: str) -> golden.Errors:
    """Do a recorded training again by its script, as a user calls it: errors of losses, updates, tests, final state."""
    case, losses, updates, tests, used = golden.load('golden_training')['cases'][name], [], [], [], []
    backward, evaluate = TrainingStep.backward, trainer.evaluate

    def noted_backward(training_step: TrainingStep, loss: Tensor) -> None:
        used[:] = [training_step]
        losses.append(loss.item())
        backward(training_step, loss)

    def noted_evaluate(*args) -> dict:
        tests.append(evaluate(*args))
        return tests[-1]

    def note_update(optimizer: torch.optim.Optimizer, *_) -> None:
        updates.append(golden.update_of(optimizer, len(losses)))

    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), ExitStack() as stack:
        stack.enter_context(patch.object(TrainingStep, 'backward', noted_backward))
        stack.enter_context(patch.object(trainer, 'evaluate', noted_evaluate))
        for stand_in in stand_ins(case):
            stack.enter_context(stand_in)
        stack.callback(register_optimizer_step_pre_hook(note_update).remove)
        run_script(case, folder, device)
    return golden.trajectory_errors(case, losses, updates, tests, *used)


def stand_ins(case: dict) -> Iterator[AbstractContextManager]:
    """The recording's data, weights and precision for the scripts' own; neither checkpoints of 400 MB nor curves."""
    train, *val = golden.samples(case)
    yield patch.object(classify, 'open_train_and_val', lambda *_: (train, *val))
    yield patch.object(multilabel_classify, 'open_part', lambda _, part, *__: train if part == 'train' else val[0])
    yield patch.object(segment, 'open_voc', lambda *_: train)
    nets = models.segmenters if case['script'] == 'segment' else models.classifiers
    build = nets[case['arch']]
    yield patch.dict(nets, {case['arch']: lambda *args, **kwargs: golden.load_weights(build(*args, **kwargs).double())})
    yield patch.dict(DTYPES, off=torch.float64)
    yield patch.object(Tensor, 'float', Tensor.double)
    yield patch.object(DeviceLoader, 'normalize', lambda _, images: golden.normalized(images))
    yield patch.object(checkpoint, 'write', lambda *_: None)
    yield patch.object(Log, 'draw', lambda _: None)


def run_script(case: dict, folder: str, device: torch.device) -> None:
    """Call the case's script with the arguments of its recording."""
    script, shared = SCRIPTS[case['script']], f'-a {case["arch"]} --epochs {case["epochs"]} --workers 0'.split()
    if case['script'] == 'segment':
        own = ['--exp=x', '--train']
    else:
        own = [folder, f'--image-size={case["side"]}', f'--start-epoch={case["start_epoch"]}']
    args = script.make_parser().parse_args([*own, *shared, '--output', folder, *case['arguments']])
    args.device = str(device)  # a number, too, where there are several
    script.main(args)


class Killed(BaseException):
    """Ends a training as a kill does: nothing is saved."""


def goes_on_after_a_kill(device: torch.device) -> Result:
    """Killed in its last update and called again, a run ends where two undisturbed ones do, as far as these agree."""
    with TemporaryDirectory() as folder:
        one, other = trained(device, Path(folder, 'one')), trained(device, Path(folder, 'other'))
        try:
            trained(device, Path(folder, 'killed'), kill_at=4)
        except Killed:
            saved = checkpoint.read(Path(folder, 'killed', LAST))
        resumed = trained(device, Path(folder, 'killed'))
    if (saved.epoch, saved.position['step']) != (1, 1):
        return Result(False, f'saved at epoch {saved.epoch}, {saved.position}', 'saved at epoch 1, step 1')
    # Two runs on a GPU can agree to the bit by chance, where another order of additions would be as right.
    agreed = distance(other, one)
    return at_most(max(4 * agreed, 1e-5), {f'state; two whole runs {agreed:.1e}': distance(resumed, one)})


def trained(device: torch.device, folder: Path, kill_at: int = 0) -> list[Tensor]:
    """Weights, statistics and momentum after two epochs of two updates, from the folder's checkpoint on."""
    arguments = 'DIR -b 4 -g 1 --epochs 2 -j 0 --save-steps 1 --auto-resume --output'
    args = classify.make_parser().parse_args([*arguments.split(), str(folder)])
    args.device = str(device)  # a number, too, where there are several
    meta, model = CheckpointMeta('imagenet', 'net', CLASSES), filled('resnext', len(CLASSES))
    run, updates = Trainer(args, meta, Files(LAST), model, cross_entropy), count(1)
    optimizer = torch.optim.SGD(run.model.parameters(), 0.05, 0.9, weight_decay=1e-4, fused=run.on_gpu)

    def before_update(*_) -> None:
        if next(updates) == kill_at:
            raise Killed

    optimizer.register_step_pre_hook(before_update)
    with redirect_stdout(io.StringIO()):
        run.fit(optimizer, lambda epoch: 0.05, noise_set('imagenet', 8, 64), TopKError)
    momenta = [state['momentum_buffer'] for state in optimizer.state.values()]
    return [value for value in model.state_dict().values() if value.is_floating_point()] + momenta
