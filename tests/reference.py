"""Nets against the reference implementation's numbers, which tools/check_gpu/golden.py reads."""

from torch import nn

from tools.check_gpu.golden import TOLERANCE, evaluation_errors, load, load_weights, training_errors

__all__ = 'assert_equal', 'assert_evaluates', 'assert_trains', 'load', 'load_weights'


def assert_equal(errors: dict[str, float]) -> None:
    """All within the tolerance, and numbers."""
    assert errors
    assert not {name: error for name, error in errors.items() if not error <= TOLERANCE}


def assert_evaluates(net: nn.Module, case: str) -> None:
    """Outputs at the sizes recorded, and at the first one those of the fused copy."""
    assert_equal(evaluation_errors(net, case))


def assert_trains(net: nn.Module, case: str) -> None:
    """One training step: output, loss, gradients, running statistics and their single update."""
    assert_equal(training_errors(net, case))
