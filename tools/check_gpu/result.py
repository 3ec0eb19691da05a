"""What a check finds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Result:
    """Whether something holds, what was measured and what it was held against."""

    holds: bool | None  # None: not checked here
    measured: str  # or why it was not checked
    bound: str = ''


def skipped(why: str) -> Result:
    return Result(None, why)


def at_most(bound: float, errors: Mapping[str, float]) -> Result:
    """Whether no error is larger; the largest is told. One that is no number is larger than all."""
    name = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float('inf'))
    return Result(errors[name] <= bound, f'{errors[name]:.1e} ({name})', f'at most {bound:.0e}')


def distance(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The L2 norm of all differences together in parts of that of what is wanted."""
    difference = size = 0.0
    for a, b in zip(found, expected, strict=True):
        difference += (a.detach().double() - b.detach().double()).square().sum().item()
        size += b.detach().double().square().sum().item()
    return (difference / size) ** 0.5
