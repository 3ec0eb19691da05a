"""Learning rates as pure functions of how far training is."""

from collections.abc import Sequence


def step_decay(base: float, epoch: float, every: int, factor: float = 0.1) -> float:
    """The learning rate once `epoch` epochs are done, times `factor` every `every` epochs (ImageNet: /10 every 30)."""
    return base * factor ** int(epoch // every)


def milestones(base: float, epoch: float, at: Sequence[int], factor: float = 0.1) -> float:
    """The learning rate once `epoch` epochs are done, multiplied by `factor` after each of `at`."""
    return base * factor ** sum(epoch >= milestone for milestone in at)


def poly(base: float, epoch: float, epochs: int, power: float = 0.9) -> float:
    """The learning rate once `epoch` of `epochs` are done: base * (1 - i/N)^0.9 in iterations (Chen et al. 2017)."""
    return base * (1 - epoch / epochs) ** power
