"""Activation checkpointing that leaves BatchNorm's running statistics as a plain step would."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.norm import batch_norms


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorms in training mode normalize as ever, but leave their running statistics alone.

    Not by track_running_stats = False: autograd would then save other tensors than in the first pass. SyncBatchNorm
    refuses to go without a count.
    """
    norms = [norm for norm in batch_norms(module) if norm.track_running_stats]
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, state in zip(norms, states, strict=True):
            norm.momentum, norm.num_batches_tracked = state


def recompute(module: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """module(x), whose activations are dropped and computed again in the backward pass; same values and gradients.

    `forward` is what to call where it is not the module itself. There are no generator states to keep, because no net
    draws random numbers in its forward. A compiled step updates statistics once by itself, and takes no contexts.
    """
    options = {'use_reentrant': False, 'preserve_rng_state': False}
    if not torch.compiler.is_compiling():
        options['context_fn'] = lambda: (nullcontext(), frozen_statistics(module))
    return checkpoint(module if forward is None else forward, x, **options)


class RecomputedSequential(nn.Sequential):
    """A Sequential that keeps only its input for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Sequential."""
        return recompute(self, x, super().forward)
