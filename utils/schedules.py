"""Learning rates as pure functions of how far training is."""

from collections.abc import Sequence


def step_decay(base: float, epoch: float, every: int) -> float:
    """The learning rate once `epoch` epochs are done, divided by 10 every `every` epochs."""
    return base * 0.1 ** int(epoch // every)


def milestones(base: float, epoch: float, at: Sequence[int]) -> float:
    """The learning rate once `epoch` epochs are done, divided by 10 after each of `at`."""
    return base * 0.1 ** sum(epoch >= milestone for milestone in at)


def poly(base: float, epoch: float, epochs: int) -> float:
    """The learning rate once `epoch` of `epochs` are done: base * (1 - i/N)^0.9 in iterations (Chen et al. 2017)."""
    return base * (1 - epoch / epochs) ** 0.9
