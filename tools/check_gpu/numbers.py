"""Checks against the reference's numbers: outputs, gradients, whole trainings."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import classify
import segment
from models.norm import freeze_norms
from tools.check_gpu import golden
from tools.check_gpu.nets import compute_of, filled, learner_of, recomputing
from tools.check_gpu.result import Result, at_most, distance
from tools.check_gpu.trainings import Losses, new_run
from utils.batches import TrainBatches
from utils.data import DeviceLoader
from utils.learner import Learner
from utils.loop import train_epoch
from utils.schedules import step_decay

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
    exact, told, holds = gradients(device, net, torch.float64), [], True
    for amp, bounds in BOUNDS.items():
        errors = output_error(device, net, amp), distance(gradients(device, net, torch.float32, amp), exact)
        holds &= all(error <= bound for error, bound in zip(errors, bounds, strict=True))
        told.append(f'{amp} {errors[0]:.1e}, {errors[1]:.1e}')
    bounds = '; '.join(f'{amp} {output:.0e}, {gradient:.0e}' for amp, (output, gradient) in BOUNDS.items())
    return Result(holds, '; '.join(told), f'output, gradients at most: {bounds}')


def output_error(device: torch.device, net: str, amp: str) -> float:
    """That of a test as the scripts do it."""
    recorded = golden.load('golden')[net]
    compute = compute_of(device, amp)
    with torch.inference_mode():
        output = learner_of(filled(net), compute).tester()(compute.images(golden.images(**recorded['input']).float()))
    return golden.output_error(output, recorded['eval'])


def gradients(device: torch.device, net: str, dtype: torch.dtype, amp: str = 'off') -> list[Tensor]:
    """Those of the recorded training step but for batch norms, which use their running statistics: over those of two
    images, gradients of these weights are chaotic, a hundredth off in float32 and all of it in bfloat16."""
    compute = compute_of(device, amp)
    model = filled(net, dtype=dtype, **recomputing(net))
    learner = learner_of(model, compute, lambda outputs, _: golden.recorded_loss(net, outputs))
    _, loss = learner.forward(compute.images(golden.images(**golden.load('golden')[net]['input']).to(dtype)), None)
    loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


class DoubleLoader(DeviceLoader):
    """Normalises in float64."""

    def normalise(self, images: Tensor) -> Tensor:
        return golden.normalised(images)


def trajectory(device: torch.device, name: str) -> Result:
    """A training in float64 by the project's own loop: losses, updates, final weights and momentum."""
    case = golden.load('golden_training')['cases'][name]
    learner, dataset = recorded_learner(device, case), golden.samples(case)[0]
    smallest = learner.model.smallest_batch if case['script'] == 'segment' else None
    loader = DoubleLoader(dataset, TrainBatches(len(dataset), case['micro_batch'], 0, smallest), learner.compute, 0)
    losses, updates = Losses(), []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: updates.append(golden.update_of(optimizer, len(losses.values)))
    )
    with TemporaryDirectory() as folder:
        run = new_run(Path(folder), learner, case['epochs'])
        for run.epoch in range(case['start_epoch'], case['epochs']):
            run.step = 0
            train_epoch(learner, loader, losses, run)
    values = [value.item() for value in losses.values]
    return at_most(golden.TOLERANCE, golden.trajectory_errors(case, values, updates, learner))


def recorded_learner(device: torch.device, case: dict) -> Learner:
    """The net and the recipe of a recorded training, as the scripts make them."""
    compute = compute_of(device)
    if case['script'] == 'segment':
        flags = f'--exp=x --train --device {device.type} --epochs {case["epochs"]}'.split()
        args = segment.make_parser().parse_args([*flags, *case['arguments']])
        name = f'{case["arch"]}/seg'
        model = compute.place(filled(name, dtype=torch.float64, **recomputing(name)))
        task = segment.make_task(args, freeze_norms(model) if args.freeze_bn else model, segment.segmentation_loss)
        runner = compute.runner(model, train=True)
        return Learner(model, runner, task.loss, compute, task.optimizer, task.learning_rate)
    args = classify.make_parser().parse_args(['DIR', *case['arguments']])
    learner = learner_of(filled(case['arch'], dtype=torch.float64), compute, lr=args.lr, decay=args.weight_decay)
    learner.learning_rate = lambda epoch: step_decay(args.lr, epoch, args.decay_epochs)
    learner.accumulate = case['k']
    return learner
