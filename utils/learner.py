"""A net together with what an update of its weights needs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.fused import fused
from utils.compute import Compute, Runner
from utils.distributed import world_size


@dataclass
class Learner:
    """A net with all that an update of its weights needs."""

    model: nn.Module  # bare: the state that checkpoints hold
    runner: Runner | None  # the same net as it is called in training: compiled, over several devices
    loss: Callable[[Tensor, Any], Tensor]  # (outputs, targets) -> mean loss ()
    compute: Compute
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[float], float]  # of the epochs done, a part of one included
    accumulate: int = 1  # micro-batches per update
    wrap: Callable[[Runner], Runner] | None = None  # how the net is called when it is tested

    def __post_init__(self):
        self.scaler = self.compute.scaler()
        self.tested: nn.Module | None = None

    def exchange(self, step: int) -> AbstractContextManager:
        """For forward and backward of the micro-batch numbered `step`: only the last of an update sums gradients over
        the processes."""
        alone = world_size() == 1 or self.completes_update(step)
        return nullcontext() if alone else self.runner.no_sync()

    def forward(self, images: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Outputs, in float32 at least, and mean loss of a micro-batch."""
        outputs = self.runner(images)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return outputs, self.loss(outputs, targets)

    def tester(self) -> Runner:
        """The net as it now is, fused and in the precision of the arithmetic: images -> outputs, in float32."""
        fresh = self.compute.place_for_test(fused(self.model))
        if self.tested is None:
            self.tested = fresh
            self.test_runner = self.compute.runner(fresh, train=False)
        self.tested.load_state_dict(fresh.state_dict())  # what was compiled stays

        def run(images: Tensor) -> Tensor:
            return self.test_runner(self.compute.of_any_number(images.to(self.compute.dtype))).float()

        return self.wrap(run) if self.wrap else run

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's share to the gradients of the update."""
        self.scaler.scale(loss / self.accumulate).backward()

    def update(self, learning_rate: float) -> None:
        """Let the optimizer use the gradients, and clear them. A group's `lr_scale` is a factor of its own."""
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate * group.get('lr_scale', 1)
        self.scaler.step(self.optimizer)
        self.scaler.update(self.compute.loss_scale)
        self.optimizer.zero_grad()

    def completes_update(self, step: int) -> bool:
        """Whether the micro-batch numbered `step` (from 0) is the last of an update."""
        return (step + 1) % self.accumulate == 0
