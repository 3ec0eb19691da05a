"""--compile: every net is compiled once for training and once for tests, whatever the sizes of the batches."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

from tests.test_export import FAMILIES, KINDS, NETS, lively
from utils.compute import Compute
from utils.learner import Learner

LEARNING_RATE = 1e-5  # so low that rounding, which compiled code does otherwise, does not grow from update to update


@pytest.fixture
def compiled(monkeypatch):
    """Counts what torch.compile is given to compile; it runs as it was traced."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('aot_eager')
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    return counter


def learner_of(build, compile):
    torch.manual_seed(0)
    model, compute = lively(build(num_classes=9)).double().train(), Compute('cpu', compile=compile)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    return Learner(
        model, compute.runner(model, train=True), cross_entropy, compute, optimizer, lambda epoch: LEARNING_RATE
    )


def trained(learner, size):
    """Losses of updates with 4, 4, 3 and 2 images, in float64."""
    losses = []
    for number in 4, 4, 3, 2:
        torch.manual_seed(number)
        images = torch.randn(number, 3, size, size, dtype=torch.float64)
        shape = learner.model.eval()(images[:1]).shape
        learner.model.train()
        _, loss = learner.forward(images, torch.zeros(number, *shape[2:], dtype=torch.int64))
        learner.backward(loss)
        learner.update(LEARNING_RATE)
        losses.append(loss.detach())
    return torch.stack(losses)


def assert_tests_equal_the_plain_net(learner, size):
    """The fused and compiled copy, in float32, and the net itself, for 4, 3 and 2 images."""
    image = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.inference_mode():
        expected = learner.model.eval()(image).float()
        atol = 1e-5 * expected.abs().max().item()
        for number in 4, 3, 2:
            outputs = learner.tester()(image.repeat(number, 1, 1, 1))
            torch.testing.assert_close(outputs, expected.expand_as(outputs), rtol=1e-4, atol=atol)


def assert_compiled_twice(build, size, counter):
    learner = learner_of(build, compile=True)
    losses = trained(learner, size)
    assert counter.frame_count == 1
    assert_tests_equal_the_plain_net(learner, size)
    assert counter.frame_count == 2
    torch.testing.assert_close(losses, trained(learner_of(build, compile=False), size), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2


@pytest.mark.parametrize('name', ['resnext', 'densenet_elastic'])
def test_families_are_compiled_once_for_training_and_once_for_tests(name, compiled):
    assert_compiled_twice(*FAMILIES[name], compiled)


@pytest.mark.slow
@pytest.mark.parametrize('kind, name', NETS)
def test_nets_are_compiled_once_for_training_and_once_for_tests(kind, name, compiled):
    assert_compiled_twice(KINDS[kind][name], 65, compiled)
