"""Checks against the reference's numbers: outputs, gradients, whole trainings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import classify
import segment
from models.norm import freeze_bn_layers
from tools.check_gpu import golden
from tools.check_gpu.nets import compute_of, filled, recomputing, training_step_of
from tools.check_gpu.result import Result, at_most, distance
from tools.check_gpu.trainings import Losses, new_run
from utils.loader import DeviceLoader, TrainBatchSampler
from utils.schedules import poly, step_decay
from utils.segmentation import segmentation_loss
from utils.signals import SignalHandler
from utils.trainer import Evaluator, TrainingStep, train_epoch

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
    recorded = golden.load('golden')[net]
    compute = compute_of(device, amp)
    with torch.inference_mode():
        test = Evaluator(compute.place(filled(net)), compute).load()
        output = test(compute.images(golden.images(**recorded['input']).float()))
    return golden.output_error(output, recorded['eval'])


def gradients(device: torch.device, net: str, dtype: torch.dtype, amp: str = 'off') -> list[Tensor]:
    """Those of the recorded training step but for batch norms, which use their running statistics: over those of two
    images, gradients of these weights are chaotic, a hundredth off in float32 and all of it in bfloat16."""
    compute = compute_of(device, amp)
    model = filled(net, dtype=dtype, **recomputing(net))
    training_step = training_step_of(model, compute, lambda outputs, _: golden.recorded_loss(net, outputs))
    images = golden.images(**golden.load('golden')[net]['input']).to(dtype)
    _, loss = training_step.forward(compute.images(images), None)
    loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


class DoubleLoader(DeviceLoader):
    """Normalizes in float64."""

    def normalize(self, images: Tensor) -> Tensor:
        return golden.normalized(images)


def trajectory(device: torch.device, name: str) -> Result:
    """A training in float64 by the project's own loop: losses, updates, final weights and momentum."""
    case = golden.load('golden_training')['cases'][name]
    (training_step, schedule), dataset = recorded_recipe(device, case), golden.samples(case)[0]
    smallest = training_step.model.smallest_batch if case['script'] == 'segment' else None
    batches = TrainBatchSampler(len(dataset), case['micro_batch'], 0, smallest)
    loader = DoubleLoader(dataset, batches, training_step.compute, 0)
    losses, updates = Losses(), []
    training_step.optimizer.register_step_pre_hook(
        lambda optimizer, *_: updates.append(golden.update_of(optimizer, len(losses.values)))
    )
    with TemporaryDirectory() as folder:
        run = new_run(Path(folder), training_step, case['epochs'])
        for run.epoch in range(case['start_epoch'], case['epochs']):
            run.step = 0
            train_epoch(training_step, schedule, loader, losses, run, SignalHandler())
    values = [value.item() for value in losses.values]
    return at_most(golden.TOLERANCE, golden.trajectory_errors(case, values, updates, training_step))


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
    model, recipe = filled(case['arch'], dtype=torch.float64), {'lr': args.lr, 'decay': args.weight_decay}
    training_step = training_step_of(model, compute, **recipe, accum_steps=case['k'])
    return training_step, partial(step_decay, args.lr, every=args.decay_epochs)
