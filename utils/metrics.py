"""What the tasks measure: objects with update, progress, compute and a state to save, counted on the device."""

from typing import Any, Protocol

import torch
from torch import Tensor

from utils.meters import Average


class Metrics(Protocol):
    """What the loops ask of a task's metrics."""

    smooth_loss: float | None  # handed on to the next epoch's, by those that have one

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch without waiting for the device."""

    def reduce(self) -> None:
        """Count what all processes counted."""

    def progress(self) -> str:
        """The end of a printed line: last values and averages so far."""

    def compute(self) -> dict[str, Any]:
        """The results by name, for the log; the numbers among them are drawn as curves."""

    def summary(self, results: dict[str, Any]) -> str:
        """What is printed of the results at the end of an evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """What a run resumed inside an epoch goes on counting from."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


class TopErrors:
    """Loss, top-1 and top-5 error in %, as printed and logged for ImageNet.

    With fewer than five classes the right one is always among the first five: Err@5 is 0.
    """

    smooth_loss = None

    def __init__(self, device: torch.device):
        self.averages = {name: Average(device) for name in ('loss', 'err1', 'err5')}

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss (), outputs N x C and class indices N."""
        first = outputs.topk(min(5, outputs.shape[1])).indices
        hit = first == targets[:, None]
        self.averages['loss'].update(loss, len(targets))
        self.averages['err1'].add(100 * (~hit[:, 0]).sum(), len(targets))
        self.averages['err5'].add(100 * (~hit.any(1)).sum(), len(targets))

    def reduce(self) -> None:
        for average in self.averages.values():
            average.reduce()

    def progress(self) -> str:
        """Last value and average so far, in the reference's form."""
        loss, err1, err5 = self.averages.values()
        return (
            f'Loss {loss.value:.4f} ({loss.average:.4f})\tErr@1 {err1.value:.3f} ({err1.average:.3f})\t'
            f'Err@5 {err5.value:.3f} ({err5.average:.3f})'
        )

    def compute(self) -> dict[str, float]:
        """The averages: loss, err1 and err5 (in %)."""
        return {name: average.average for name, average in self.averages.items()}

    def summary(self, results: dict[str, float]) -> str:
        """The line that ends an evaluation."""
        return f' * Err@1 {results["err1"]:.3f} Err@5 {results["err5"]:.3f}'

    def state_dict(self) -> dict[str, Any]:
        return {name: average.state_dict() for name, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, average in self.averages.items():
            average.load_state_dict(state[name])
