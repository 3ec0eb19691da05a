"""The reference implementation's numbers (tests/golden) and the weights and inputs they were recorded with.

golden.json.gz and golden_sizes.json.gz hold outputs, gradient norms and running statistics of the authors' code, in
float64 from weights and inputs rounded to float32; state_dicts.json.gz holds [name, shape] of every tensor, in order.
"""

import gzip
import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.fused import fused

GOLDEN = Path(__file__).parent / 'golden'
TOLERANCE = 1e-6  # of float64, as recorded: nine digits, other orders of summation


@cache
def load(name: str) -> dict:
    """The content of tests/golden/NAME.json.gz."""
    with gzip.open(GOLDEN / f'{name}.json.gz', 'rt') as file:
        return json.load(file)


def weight(name: str, shape: list[int]) -> Tensor:
    """The float32 tensor that the recording used under this state-dict name: drawn once, to be copied, not changed."""
    return _drawn(name, tuple(shape))


@cache
def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
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
    net.load_state_dict(
        {
            name: torch.tensor(0) if name.endswith('num_batches_tracked') else weight(name, list(tensor.shape))
            for name, tensor in net.state_dict().items()
        }
    )
    return net


def images(seed: int, shape: list[int]) -> Tensor:
    """The recorded input: rounded to float32, given as float64."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32)).double()


def assert_output(output: Tensor, recorded: dict) -> None:
    """Shape, mean, standard deviation and 32 points, relative to the largest point."""
    flat = output.detach().flatten().numpy()
    points = np.array(recorded['points'])
    scale = np.abs(points).max()
    assert list(output.shape) == recorded['shape']
    np.testing.assert_allclose(flat[np.linspace(0, flat.size - 1, 32).astype(int)], points, 0, TOLERANCE * scale)
    np.testing.assert_allclose(flat.mean(), recorded['mean'], 0, TOLERANCE * scale)
    np.testing.assert_allclose(flat.std(ddof=1), recorded['std'], 0, TOLERANCE * scale)


def assert_norms(tensors: dict[str, Tensor], recorded: dict[str, float], floor: float = 0.0) -> None:
    """L2 norms: exactly the recorded names, each relative to itself, or to `floor` of the largest where smaller."""
    assert tensors.keys() == recorded.keys()
    smallest = floor * max(recorded.values())
    wrong = {
        name: (tensor.norm().item(), recorded[name])
        for name, tensor in tensors.items()
        if not abs(tensor.norm().item() - recorded[name]) <= TOLERANCE * max(recorded[name], smallest)
    }
    assert not wrong


def assert_evaluates(net: nn.Module, case: str) -> None:
    """Outputs at the sizes recorded, and at the first one those of the fused copy."""
    net.eval()
    recordings = [load(name)[case] for name in ('golden', 'golden_sizes') if case in load(name)]
    with torch.inference_mode():
        for recorded in recordings:
            assert_output(net(images(**recorded['input'])), recorded['eval'])
        recorded = recordings[0]
        assert_output(fused(net)(images(**recorded['input'])), recorded['eval'])


def assert_trains(net: nn.Module, case: str, loss_of: Callable[[Tensor, int], Tensor]) -> None:
    """One training step: output, loss of output and seed, gradients, running statistics and their single update."""
    recorded, x = load('golden')[case]['train'], load('golden')[case]['input']
    output = net.train()(images(**x))
    assert_output(output, recorded['output'])
    loss = loss_of(output, x['seed'])
    assert abs(loss.item() / recorded['loss'] - 1) <= TOLERANCE
    loss.backward()
    parameters = dict(net.named_parameters())
    assert {name for name, p in parameters.items() if p.grad is None} == set(recorded['no_gradient'])
    assert {name for name, p in parameters.items() if not p.requires_grad} == set(recorded['no_gradient'])
    assert_norms({name: p.grad for name, p in parameters.items() if p.grad is not None}, recorded['grad_norms'], 1e-4)
    unused = {name.rpartition('.')[0] for name in recorded['no_gradient']}
    buffers = {name: b for name, b in net.named_buffers() if name.rpartition('.')[0] not in unused}
    counts = {buffers.pop(name).item() for name in list(buffers) if name.endswith('num_batches_tracked')}
    assert_norms(buffers, recorded['running_norms'])
    assert counts == {1}
