"""Checks of what trainings come to: the reference's outputs, gradients and trainings; and a killed one that goes on."""

import io
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import classify
import segment
from models.norm import freeze_bn_layers
from tools.check_gpu import golden
from tools.check_gpu.nets import CLASSES, compute_of, filled, gradients_of, noise_set, recomputing, training_step_of
from tools.check_gpu.result import Result, at_most, distance
from utils import checkpoint
from utils.checkpoint import CheckpointMeta
from utils.loader import DeviceLoader, TrainBatchSampler
from utils.logger import Reporter
from utils.metrics import TopKError
from utils.run import CheckpointNames, Run
from utils.schedules import poly, step_decay
from utils.segmentation import RunningLoss, segmentation_loss
from utils.signals import SignalHandler
from utils.step import Evaluator, TrainingStep
from utils.trainer import Trainer, train_epoch

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
    """A training in float64 by the project's own loop: losses, updates, final weights and momentum."""
    case, losses, updates = golden.load('golden_training')['cases'][name], [], []
    (training_step, schedule), dataset = recorded_recipe(device, case), golden.samples(case)[0]
    model, loss, optimizer = training_step.model, training_step.loss, training_step.optimizer

    def noted_loss(*given) -> Tensor:
        losses.append(loss(*given))
        return losses[-1]

    training_step.loss = noted_loss
    optimizer.register_step_pre_hook(lambda *_: updates.append(golden.update_of(optimizer, len(losses))))
    smallest = model.smallest_batch if case['script'] == 'segment' else None
    batches = TrainBatchSampler(len(dataset), case['micro_batch'], 0, smallest)
    loader = DeviceLoader(dataset, batches, training_step.compute, 0)
    loader.normalize = golden.normalized
    args = Namespace(output=Path(), save_steps=0)
    run = Run(args, None, CheckpointNames(LAST), training_step, {}, 0, Reporter(every=1))
    with redirect_stdout(io.StringIO()):
        for run.epoch in range(case['start_epoch'], case['epochs']):
            run.step = 0
            train_epoch(training_step, schedule, loader, RunningLoss(device), run, SignalHandler())
    losses = [loss.item() for loss in losses]
    return at_most(golden.TOLERANCE, golden.trajectory_errors(case, losses, updates, training_step))


def recorded_recipe(device: torch.device, case: dict) -> tuple[TrainingStep, Callable[[float], float]]:
    """The net, as it is trained, and the schedule of a recorded training, as the scripts make them."""
    compute = compute_of(device)
    if case['script'] == 'segment':
        args = segment.make_parser().parse_args(['--exp=x', '--train', *case['arguments']])
        name = f'{case["arch"]}/seg'
        model = compute.place(filled(name, dtype=torch.float64, **recomputing(name)))
        if args.freeze_bn:
            freeze_bn_layers(model)
        optimizer = torch.optim.SGD(segment.parameter_groups(model, args.last_mult), args.base_lr, 0.9)
        schedule = partial(poly, args.base_lr, epochs=case['epochs'])
        return TrainingStep(model, segmentation_loss, compute, optimizer), schedule
    args = classify.make_parser().parse_args(['DIR', *case['arguments']])
    model, recipe = filled(case['arch'], dtype=torch.float64), {'lr': args.lr, 'weight_decay': args.weight_decay}
    training_step = training_step_of(model, compute, cross_entropy, case['k'], **recipe)
    return training_step, partial(step_decay, args.lr, every=args.decay_epochs)


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
    # Two runs on a GPU can agree to the bit by chance, where another order of additions would be as right: once that
    # turns a ReLU they are up to 4e-3 apart. A run resumed without momentum or statistics is 6e-2 off.
    agreed = distance(other, one)
    return at_most(max(4 * agreed, 1e-2), {f'state; two whole runs {agreed:.1e}': distance(resumed, one)})


def trained(device: torch.device, folder: Path, kill_at: int = 0) -> list[Tensor]:
    """Weights, statistics and momentum after two epochs of two updates, from the folder's checkpoint on."""
    arguments = 'DIR -b 4 -g 1 --epochs 2 -j 0 --save-steps 1 --auto-resume --output'
    args = classify.make_parser().parse_args([*arguments.split(), str(folder)])
    args.device = str(device)  # a number, too, where there are several
    meta, model = CheckpointMeta('imagenet', 'net', CLASSES), filled('resnext', len(CLASSES))
    trainer, updates = Trainer(args, meta, CheckpointNames(LAST), model, cross_entropy), count(1)
    optimizer = torch.optim.SGD(trainer.model.parameters(), 0.05, 0.9, weight_decay=1e-4, fused=trainer.on_gpu)

    def before_update(*_) -> None:
        if next(updates) == kill_at:
            raise Killed

    optimizer.register_step_pre_hook(before_update)
    with redirect_stdout(io.StringIO()):
        trainer.fit(optimizer, lambda epoch: 0.05, noise_set('imagenet', 8, 64), TopKError)
    momenta = [state['momentum_buffer'] for state in optimizer.state.values()]
    return [value for value in model.state_dict().values() if value.is_floating_point()] + momenta
