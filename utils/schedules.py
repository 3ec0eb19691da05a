"""Learning rates as pure functions of how far training is."""

from collections.abc import Sequence


def step_decay(base: float, epoch: int, every: int, factor: float = 0.1) -> float:
    """The learning rate of `epoch` (from 0), multiplied by `factor` every `every` epochs (ImageNet: /10 every 30)."""
    return base * factor ** (epoch // every)


def milestones(base: float, epoch: int, at: Sequence[int], factor: float = 0.1) -> float:
    """The learning rate of `epoch` (from 0), multiplied by `factor` when each epoch of `at` begins."""
    return base * factor ** sum(epoch >= milestone for milestone in at)
