"""The error of a classifier, overall and by the size of the object, counted on the device."""

from typing import Any

import torch
from torch import Tensor

from data.scaled_objects import THIRDS, Target
from utils.meters import Average


class ScaleErrors:
    """Loss, and top-1 error in %, overall (`err1`) and of each third of the sizes."""

    smooth_loss = None

    def __init__(self, device: torch.device):
        self.averages = {name: Average(device) for name in ('loss', 'err1')}
        self.wrong, self.seen = torch.zeros(2, len(THIRDS), dtype=torch.int64, device=device)

    def update(self, loss: Tensor, outputs: Tensor, targets: Target) -> None:
        """Count a batch: its mean loss (), outputs N x C and targets N."""
        wrong = outputs.argmax(1) != targets.label
        self.averages['loss'].update(loss, len(wrong))
        self.averages['err1'].add(100 * wrong.sum(), len(wrong))
        self.seen += targets.third.bincount(minlength=len(THIRDS))
        self.wrong += targets.third[wrong].bincount(minlength=len(THIRDS))

    def reduce(self) -> None:
        """One process counts it all."""

    def progress(self) -> str:
        """Last value and average so far."""
        loss, err1 = self.averages.values()
        return f'Loss {loss.value:.4f} ({loss.average:.4f})\tErr@1 {err1.value:.3f} ({err1.average:.3f})'

    def compute(self) -> dict[str, Any]:
        """loss, err1, the error of each third (None of an empty one), and how many pictures each third has."""
        counts = zip(THIRDS, self.wrong.tolist(), self.seen.tolist(), strict=True)
        thirds = {name: 100 * wrong / seen if seen else None for name, wrong, seen in counts}
        averages = {name: average.average for name, average in self.averages.items()}
        return {**averages, **thirds, 'pictures': dict(zip(THIRDS, self.seen.tolist(), strict=True))}

    def summary(self, results: dict[str, Any]) -> str:
        """The line that ends an evaluation."""
        return f' * Err@1 {results["err1"]:.3f}'

    def state_dict(self) -> dict[str, Any]:
        averages = {name: average.state_dict() for name, average in self.averages.items()}
        return {**averages, 'wrong': self.wrong.tolist(), 'seen': self.seen.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, average in self.averages.items():
            average.load_state_dict(state[name])
        self.wrong.copy_(torch.tensor(state['wrong']))
        self.seen.copy_(torch.tensor(state['seen']))
