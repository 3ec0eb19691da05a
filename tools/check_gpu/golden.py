"""The reference implementation's numbers (tests/golden), what they were recorded with, and how far a net is from them.

golden.json.gz and golden_sizes.json.gz hold outputs, gradient norms and running statistics of the authors' code, in
float64 from weights and inputs rounded to float32; state_dicts.json.gz holds [name, shape] of every tensor, in order;
golden_training.json.gz holds trainings by the authors' loops, as its `about` says.

Errors are relative: of an output to its largest point, of norms to themselves. What has not even the recorded form
(names, counts, which parameters get gradients) raises a ValueError.
"""

import gzip
import json
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import models
from models.fused import fused
from utils.loader import MEAN, STD
from utils.segmentation import Target
from utils.step import TrainingStep

GOLDEN = Path(__file__).parent.parent.parent / 'tests' / 'golden'
TOLERANCE = 1e-6  # of float64, as recorded: nine digits, other orders of summation
NETS = models.classifiers | {f'{name}/seg': build for name, build in models.segmenters.items()}
HELD_OUT = 6  # samples of the test sets of the classifiers' trainings
Errors = dict[str, float]


@cache
def load(name: str) -> dict:
    """The content of tests/golden/NAME.json.gz."""
    with gzip.open(GOLDEN / f'{name}.json.gz', 'rt') as file:
        return json.load(file)


@cache
def weight(name: str, shape: torch.Size) -> Tensor:
    """The float32 tensor that the recording used under this state-dict name: drawn once, to be copied, not changed."""
    rs = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith('running_var'):
        values = rs.uniform(0.5, 1.5, shape)
    elif name.endswith('running_mean'):
        values = 0.1 * rs.standard_normal(shape)
    elif len(shape) in {2, 4}:
        values = rs.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith('weight'):
        values = rs.uniform(0.1, 0.3, shape) if '.bn3.' in name else rs.uniform(0.5, 1.0, shape)
    else:
        values = 0.1 * rs.standard_normal(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def load_weights(net: nn.Module) -> nn.Module:
    """Gives the net, which may be without memory, the recorded weights in its own precision; no batch is counted."""
    if any(parameter.is_meta for parameter in net.parameters()):
        net.to_empty(device='cpu')
    state = net.state_dict()
    counts = {name: torch.tensor(0) for name in state if name.endswith('num_batches_tracked')}
    net.load_state_dict(counts | {name: weight(name, state[name].shape) for name in state.keys() - counts.keys()})
    return net


def images(seed: int, shape: list[int]) -> Tensor:
    """The recorded input: rounded to float32, given as float64."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32)).double()


def recorded_loss(case: str, output: Tensor) -> Tensor:
    """The loss of an output of a training step; of pixels the first five rows are ignored."""
    seed = load('golden')[case]['input']['seed']
    if case.endswith('/seg'):
        targets = np.random.RandomState(seed + 1).randint(0, 21, [len(output), *output.shape[2:]])
        targets[:, :5] = 255
        return F.cross_entropy(output, torch.from_numpy(targets).to(output.device), ignore_index=255)
    return F.cross_entropy(output, torch.tensor([seed % 1000, (seed * 7 + 3) % 1000], device=output.device))


def relative(found: float, recorded: float, scale: float | None = None) -> float:
    """The difference in parts of `scale`, by default of what is recorded."""
    scale = abs(recorded) if scale is None else scale
    return abs(found - recorded) / scale if scale else 0.0 if found == recorded else float('inf')


def output_error(output: Tensor, recorded: dict) -> float:
    """The largest of mean, standard deviation and 32 points, relative to the largest point."""
    require(list(output.shape) == recorded['shape'], 'an output of another shape')
    flat, points = output.detach().flatten().double().cpu().numpy(), np.array(recorded['points'])
    scale = np.abs(points).max()
    found = [*flat[np.linspace(0, flat.size - 1, 32).astype(int)], flat.mean(), flat.std(ddof=1)]
    expected = [*points, recorded['mean'], recorded['std']]
    return worst(relative(*pair, scale) for pair in zip(found, expected, strict=True))


def norm_errors(tensors: dict[str, Tensor], recorded: dict[str, float], floor: float = 0.0) -> Errors:
    """Those of L2 norms, each relative to itself, or to `floor` of the largest where smaller."""
    require(tensors.keys() == recorded.keys(), 'other names than recorded')
    smallest, norms = floor * max(recorded.values()), {name: tensor.norm().item() for name, tensor in tensors.items()}
    return {name: relative(norms[name], norm, max(norm, smallest)) for name, norm in recorded.items()}


def evaluation_errors(net: nn.Module, case: str) -> Errors:
    """Those of outputs at the sizes recorded, and at the first one of the fused copy."""
    first, other = load('golden')[case], load('golden_sizes').get(case)
    net, own = net.eval(), next(net.parameters())

    @torch.inference_mode()
    def error(run: nn.Module, recorded: dict) -> float:
        return output_error(run(images(**recorded['input']).to(own)), recorded['eval'])

    errors = {'output': error(net, first), 'fused output': error(fused(net), first)}
    return errors | ({'output at another size': error(net, other)} if other else {})


def training_errors(net: nn.Module, case: str) -> Errors:
    """Those of one training step: output, loss, gradients, running statistics and their single update."""
    recorded = load('golden')[case]['train']
    output = net.train()(images(**load('golden')[case]['input']).to(next(net.parameters())))
    loss = recorded_loss(case, output)
    loss.backward()
    parameters, unused = dict(net.named_parameters()), set(recorded['no_gradient'])
    require({name for name, p in parameters.items() if p.grad is None} == unused, 'other gradients than recorded')
    require({name for name, p in parameters.items() if not p.requires_grad} == unused, 'other parameters trained')
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    modules = {name.rpartition('.')[0] for name in unused}
    buffers = {name: b for name, b in net.named_buffers() if name.rpartition('.')[0] not in modules}
    counts = {buffers.pop(name).item() for name in list(buffers) if name.endswith('num_batches_tracked')}
    require(counts == {1}, 'batches counted otherwise than once')
    return {
        'output in training': output_error(output, recorded['output']),
        'loss': relative(loss.item(), recorded['loss']),
        **{f'gradient of {key}': value for key, value in norm_errors(gradients, recorded['grad_norms'], 1e-4).items()},
        **norm_errors(buffers, recorded['running_norms']),
    }


class Samples(Dataset):
    """Samples of a recorded training, with its classes' names where the classifying scripts look for them."""

    def __init__(self, images: Tensor, targets: list, classes: int):
        self.images, self.targets, self.classes = images, targets, [str(number) for number in range(classes)]

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
        images = np.concatenate([images, inside], 1)
    elif script == 'multilabel_classify':
        values = random.uniform(size=(total, 3, 80)) < 0.1
    else:
        values = random.randint(0, 1000, total)
    sums = images[:, :3].sum(), values.sum()
    require(sums == (case['images_sum'], case['targets_sum']), 'other samples than recorded')
    images, targets = torch.from_numpy(images), list(torch.from_numpy(values))
    if voc:
        return [Samples(images, [Target(labels, number) for number, labels in enumerate(targets)], 21)]
    end, classes = case['samples'], 80 if values.ndim > 1 else 1000
    return [Samples(images[part], targets[part], classes) for part in (slice(end), slice(end, None))]


def normalized(images: Tensor) -> Tensor:
    """As DeviceLoader's, in float64."""
    mean, std = (torch.tensor(part, dtype=torch.float64, device=images.device)[:, None, None] for part in (MEAN, STD))
    values = (images[:, :3].double() / 255 - mean) / std
    return values * images[:, 3:] if images.shape[1] == 4 else values


def update_of(optimizer: torch.optim.Optimizer, losses: int) -> dict:
    """What the optimizer is about to do after so many losses, as recorded."""
    groups = optimizer.param_groups
    gradients = [p.grad for group in groups for p in group['params'] if p.grad is not None]
    return {
        'after_micro_batch': losses,
        **{key: [group[key] for group in groups] for key in ('lr', 'weight_decay')},
        'grad_norm': torch.stack([gradient.norm() for gradient in gradients]).norm().item(),
    }


def trajectory_errors(case: dict, losses: list[float], updates: list[dict], training_step: TrainingStep) -> Errors:
    """Those of losses, updates and the net at the end of a training; k times ours is the reference's."""
    k, places = case['k'], [update['after_micro_batch'] for update in case['updates']]
    require([update['after_micro_batch'] for update in updates] == places, 'other updates than recorded')

    def error(key: str, factor: float) -> float:
        found, recorded = (np.hstack([update[key] for update in those]) for those in (updates, case['updates']))
        return worst(relative(*pair) for pair in zip(factor * found, recorded, strict=True))

    return {
        'losses': worst(relative(*pair) for pair in zip(losses, case['losses'], strict=True)),
        'learning rates': error('lr', 1 / k),
        'weight decays': error('weight_decay', k),
        'gradient norms': error('grad_norm', k),
        **_final_errors(case, training_step),
    }


def _final_errors(case: dict, training_step: TrainingStep) -> Errors:
    """Weights, running statistics where they are used, and momentum."""
    model, memory = training_step.model, training_step.optimizer.state
    unused = {f'{norm}.{key}' for norm in case['unused_norms'] for key in ('running_mean', 'running_var')}
    state = {name: value for name, value in model.state_dict().items() if 'tracked' not in name}
    require(state.keys() == case['final'].keys(), 'another state than recorded')
    parameters = dict(model.named_parameters())
    momenta = {name: memory[p]['momentum_buffer'] * case['k'] for name, p in parameters.items() if memory.get(p)}
    require(momenta.keys() == case['final_momentum'].keys(), 'other momenta than recorded')
    still = {*case['no_gradient'], *case['not_trained']}
    require(parameters.keys() - momenta.keys() == still, 'other parameters trained than recorded')
    return {
        **{name: _tensor_error(state[name], case['final'][name]) for name in state.keys() - unused},
        **{f'momentum of {name}': _tensor_error(momenta[name], case['final_momentum'][name]) for name in momenta},
    }


def _tensor_error(tensor: Tensor, recorded: list[float]) -> float:
    """The largest of sum, sum of squares and first value."""
    values, (_, squares, _) = tensor.detach().flatten(), recorded
    found = values.sum().item(), values.square().sum().item(), values[0].item()
    scales = (len(values) * squares) ** 0.5, None, (squares / len(values)) ** 0.5
    return worst(map(relative, found, recorded, scales))


def worst(errors: Iterable[float]) -> float:
    """The largest; infinite if one is no number, which no comparison would find."""
    return max(error if error == error else float('inf') for error in errors)


def require(holds: bool, otherwise: str) -> None:
    """ValueError that tells what there is otherwise."""
    if not holds:
        raise ValueError(otherwise)
