"""Nets against the reference implementation's numbers, which tools/check_gpu/golden.py reads."""

from tools.check_gpu.golden import TOLERANCE, load, load_weights

__all__ = 'assert_equal', 'load', 'load_weights'


def assert_equal(errors: dict[str, float]) -> None:
    """All within the tolerance, and numbers."""
    assert errors
    assert not {name: error for name, error in errors.items() if not error <= TOLERANCE}
