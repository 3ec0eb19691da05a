"""A net together with what an update of its weights needs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.compute import Compute


@dataclass
class Learner:
    """A net with all that an update of its weights needs."""

    model: nn.Module  # bare: the state that checkpoints hold
    runner: Callable[[Tensor], Tensor]  # the same net as it is called: compiled, over several devices
    loss: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> mean loss ()
    compute: Compute
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int, int], float]  # of (epoch, micro-batch)
    accumulate: int = 1  # micro-batches per update

    def __post_init__(self):
        self.scaler = self.compute.scaler()

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs, in float32, and mean loss of a micro-batch."""
        with self.compute.autocast():
            outputs = self.runner(images)
        outputs = outputs.float()
        return outputs, self.loss(outputs, targets)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's share to the gradients of the update."""
        self.scaler.scale(loss / self.accumulate).backward()

    def update(self, learning_rate: float) -> None:
        """Let the optimizer use the gradients, and clear them."""
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def completes_update(self, step: int) -> bool:
        """Whether the micro-batch numbered `step` (from 0) is the last of an update."""
        return (step + 1) % self.accumulate == 0
