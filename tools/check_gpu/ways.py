"""Checks that ways to run a net give the same: fused, compiled, channels-last, recomputed; the fused optimizer."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tools.check_gpu.nets import compute_of, filled, noise, training_step_of
from tools.check_gpu.result import Result, at_most, distance
from utils.trainer import Evaluator

SIDE = 33  # maps are odd at most strides


def tests_alike(device: torch.device, net: str, **way) -> Result:
    """The copy that is tested, fused, channels-last and where asked compiled, against the plain net, contiguous."""
    compute, images = compute_of(device, **way), noise(4, 3, SIDE, SIDE)
    tester = Evaluator(compute.place(filled(net, 9)), compute)
    with torch.inference_mode():
        found = [tester.load()(compute.images(images[:count])) for count in (4, 3)]
        plain = compute_of(device, channels_last=False)
        model = plain.place(filled(net, 9))
        expected = [model(plain.images(images[:count])) for count in (4, 3)]
    return at_most(1e-4, {'outputs': distance(found, expected)})


def trains_alike(device: torch.device, net: str, bound: float, recomputed: bool = False, **way) -> Result:
    """A training step run such a way against the plain one. `bound` is of gradients: with batch statistics of so few
    images another order of additions can change a thousandth of them."""
    found, expected = trained(device, net, recomputed, **way), trained(device, net, False)
    errors = {name: distance(found[name], expected[name]) for name in expected}
    gradients, others = at_most(bound, {'gradients': errors.pop('gradients')}), at_most(1e-4, errors)
    return gradients if others.holds else others


def trained(device: torch.device, net: str, recomputed: bool, **way) -> dict[str, list[Tensor]]:
    """Loss, gradients and running statistics."""
    compute = compute_of(device, **way)
    model = filled(net, 9, **({'checkpoint_activations': True} if recomputed else {})).train()
    training_step = training_step_of(model, compute, loss_of_first_class)
    _, loss = training_step.forward(compute.images(noise(4, 3, SIDE, SIDE)), None)
    training_step.backward(loss)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    statistics = [value for name, value in model.named_buffers() if 'running' in name]
    return {'loss': [loss], 'gradients': gradients, 'statistics': statistics}


def loss_of_first_class(outputs: Tensor, _) -> Tensor:
    """Cross-entropy, also of maps."""
    return cross_entropy(outputs, torch.zeros_like(outputs[:, 0], dtype=torch.int64))


def fused_sgd_is_plain(device: torch.device) -> Result:
    """Five updates in float64."""

    def updated(fused: bool) -> list[Tensor]:
        model = compute_of(device).place(filled('resnext', 9, dtype=torch.float64)).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, fused=fused)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of_first_class(model(noise(4, 3, SIDE, SIDE, dtype=torch.float64).to(device)), None).backward()
            optimizer.step()
        return list(model.state_dict().values())

    return at_most(1e-10, {'state': distance(updated(True), updated(False))})

