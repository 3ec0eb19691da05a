"""Intersection over union from one confusion matrix, counted on the device."""

from typing import Any

import torch
from torch import Tensor

from utils.distributed import sum_over_processes

IGNORED = 255  # the label of pixels that do not count


class ConfusionMatrix:
    """How often each true class was predicted as each class: C x C, rows true, columns predicted."""

    def __init__(self, device: torch.device, classes: list[str]):
        self.classes = classes
        self.counts = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count pixels: class indices of one shape; targets of 255 are left out."""
        total = len(self.classes)
        predictions, targets = predictions.flatten().long(), targets.flatten().long()
        cells = torch.where(targets == IGNORED, total * total, targets * total + predictions)
        # Not bincount: on a GPU it waits, to see how many bins there are.
        bins = cells.new_zeros(total * total + 1).scatter_add_(0, cells, torch.ones_like(cells))
        self.counts += bins[:-1].view(total, total)

    def reduce(self) -> None:
        """Let every process have the counts of all."""
        self.counts = sum_over_processes(self.counts)

    def compute(self) -> dict[str, Any]:
        """In %: `iou` per class, 0 where a class is in neither truth nor prediction, and its mean over all classes
        (`miou`); the mean over the classes that the truth holds (`miou_present`), and their number (`present`)."""
        counts = self.counts.cpu().double()
        hits = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hits
        iou = 100 * hits / union.clamp(min=1)
        present = counts.sum(1) > 0
        of_present = iou[present].mean().item() if present.any() else 0.0
        return {
            'miou': iou.mean().item(),
            'miou_present': of_present,
            'present': int(present.sum()),
            'iou': dict(zip(self.classes, iou.tolist(), strict=True)),
        }
