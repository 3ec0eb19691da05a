"""--compile: every net is compiled once for training and once for tests, whatever the sizes of the batches."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

from tests.test_export import FAMILIES, KINDS, NETS, lively
from utils.compute import Compute
from utils.learner import Learner


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
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return Learner(model, compute.runner(model, train=True), cross_entropy, compute, optimizer, lambda epoch: 0.01)


def trained_and_tested(build, size, compile):
    """Losses of batches of 4, 4, 3 and 2 images, in float64, and outputs for 4, 3 and 2."""
    learner = learner_of(build, compile)
    losses, outputs = [], []
    for number in 4, 4, 3, 2:
        torch.manual_seed(number)
        images = torch.randn(number, 3, size, size, dtype=torch.float64)
        shape = learner.model.eval()(images[:1]).shape
        learner.model.train()
        _, loss = learner.forward(images, torch.zeros(number, *shape[2:], dtype=torch.int64))
        learner.backward(loss)
        learner.update(0.01)
        losses.append(loss.detach())
    with torch.inference_mode():
        for number in 4, 3, 2:
            outputs.append(learner.tester()(images[:1].repeat(number, 1, 1, 1)))
    return torch.stack(losses), torch.cat(outputs)


def assert_compiled_twice(build, size, counter):
    losses, outputs = trained_and_tested(build, size, compile=True)
    assert counter.frame_count == 2
    expected = trained_and_tested(build, size, compile=False)
    assert counter.frame_count == 2
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs, expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('name', ['resnext', 'densenet_elastic'])
def test_families_are_compiled_once_for_training_and_once_for_tests(name, compiled):
    assert_compiled_twice(*FAMILIES[name], compiled)


@pytest.mark.slow
@pytest.mark.parametrize('kind, name', NETS)
def test_nets_are_compiled_once_for_training_and_once_for_tests(kind, name, compiled):
    assert_compiled_twice(KINDS[kind][name], 65, compiled)
