"""--compile: every net is compiled once for training and once for tests, whatever the sizes of the batches there."""

import copy
from functools import partial

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

from tests.nets import filled, in_make_test, noise, recomputing
from utils.device import Compute
from utils.step import Evaluator, TrainingStep

SIZE = 33  # maps are odd at most strides


def gradients_of(model):
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_trains_as_the_plain_net(training_step):
    """Losses, running statistics and gradients of three updates with 3 images each, in float64.

    Each from the same weights: rounding grows from update to update.
    """
    images = noise(3, 3, SIZE, SIZE, dtype=torch.float64)
    targets = torch.zeros(3, *training_step.model.eval()(images[:1]).shape[2:], dtype=torch.int64)
    for _ in range(3):
        plain = copy.deepcopy(training_step.model).train()
        expected = cross_entropy(plain(images), targets)
        expected.backward()
        training_step.model.train()
        _, loss = training_step.forward(images, targets)
        training_step.backward(loss)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dict(training_step.model.named_buffers()), dict(plain.named_buffers()))
        gradients = gradients_of(plain)
        atol = 1e-5 * max(gradient.abs().max().item() for gradient in gradients.values())
        torch.testing.assert_close(gradients_of(training_step.model), gradients, rtol=1e-3, atol=atol)
        training_step.optimizer_step(0.01)


def takes_any_number(traced):
    inputs = [node.meta['example_value'] for node in traced.graph.nodes if node.op == 'placeholder']
    shapes = [value.shape for value in inputs if isinstance(value, torch.Tensor)]
    return any(isinstance(shape[0], torch.SymInt) for shape in shapes if shape)


@in_make_test('resnext', 'dla', 'densenet_elastic')
def test_nets_are_compiled_once_for_training_and_once_for_any_number_of_images_to_test(name, monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('aot_eager')  # it runs as it was traced
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    model, compute = filled(name, num_classes=9, dtype=torch.float64, **recomputing(name)), Compute('cpu', compile=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    assert_trains_as_the_plain_net(TrainingStep(model, cross_entropy, compute, optimizer))
    image = noise(1, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.inference_mode():  # the copy, fused and compiled, in float32
        expected, tester = model.eval()(image).float(), Evaluator(model, compute)
        atol = 1e-5 * expected.abs().max().item()
        for number in 4, 3, 2:  # filled up to 4
            outputs = tester.load()(image.repeat(number, 1, 1, 1))
            torch.testing.assert_close(outputs, expected.expand_as(outputs), rtol=1e-4, atol=atol)
        for number in 2, 3:  # of another size, of which there may be many
            tester.load()(noise(number, 3, SIZE + 8, SIZE + 8))
    assert [takes_any_number(traced) for traced in counter.graphs] == [False, False, True]
