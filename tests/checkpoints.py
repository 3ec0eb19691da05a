"""Files as the reference wrote them, what does harm if it is unpickled naively, and a process that is killed."""

import os
from pathlib import Path

import torch

from tests.conftest import TinyNet
from tests.nets import load_weights
from utils import checkpoint


def trained(seed=0, norms=True):
    """A TinyNet after one update, and its optimizer; without `norms` as the reference's with --freeze_bn."""
    torch.manual_seed(seed)
    model = TinyNet(5)
    model.block.conv1_d.weight.requires_grad_(False)  # so that it has no momentum
    given = [parameter for name, parameter in model.named_parameters() if norms or 'bn' not in name]
    optimizer = torch.optim.SGD(given, 0.1, 0.9)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def released(model, optimizer):
    """The dict that the reference saved, its optimizer keyed by the parameters' ids as PyTorch did until 1.3."""
    saved = optimizer.state_dict()
    ids = [140_000_000_000_000 - 64 * position for position in saved['param_groups'][0]['params']]
    group = {'lr': 0.1, 'momentum': 0.9, 'dampening': 0, 'weight_decay': 1e-4, 'nesterov': False, 'params': ids}
    old = {'state': {ids[position]: value for position, value in saved['state'].items()}, 'param_groups': [group]}
    state = checkpoint.state_dict(model)
    return {'epoch': 7, 'arch': 'tiny', 'state_dict': state, 'best_err1': torch.tensor(21.5), 'optimizer': old}


def file_of(state, **said):
    """A checkpoint as it would be read, which says no more than this."""
    return checkpoint.Checkpoint(Path('file'), state, **said)


def save_net(path, net, roll=0, bias=0.0, **said):
    """The net, with weights by which pictures, and their parts, are told apart, in a file that says this."""
    load_weights(net).eval().requires_grad_(False)
    head = net.get_submodule(net.head_names[0])
    head.weight.copy_(5 * head.weight.roll(roll, 0))
    head.bias.fill_(bias)
    torch.save({**said, 'state_dict': checkpoint.state_dict(net)}, path)
    return net


class Hostile:
    """Unpickling it naively makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def killed_at(patch, module, name, number, suffix=''):
    """The process ends in place of a function's call: of those whose last argument ends so, the one of this number."""
    function, calls = getattr(module, name), []

    def counting(*args):
        calls.extend([args] * str(args[-1]).endswith(suffix))
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*args)

    patch.setattr(module, name, counting)
