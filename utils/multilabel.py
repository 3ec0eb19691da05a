"""Precision, recall and F of multi-label classification, per class and overall, mean average precision, recall by size.

All counts stay on the device and are made without a loop over classes or images.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from utils.distributed import all_gather_rows, all_reduce_sum
from utils.metrics import Metrics, widest_float

SIZES = 'small', 'medium', 'large'  # of objects: below 32^2 pixels, below 96^2, and above
NAMES = 'P_C', 'R_C', 'F_C', 'P_O', 'R_O', 'F_O'


def multilabel_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits N x C, summed over classes, mean over images; targets N x 3 x C booleans."""
    labels = targets.any(1).to(outputs.dtype)
    return binary_cross_entropy_with_logits(outputs, labels) * outputs.shape[1]


class MultiLabelCounts(Metrics):
    """Loss, precision, recall and F in %: what training reports. A class is predicted where its logit is positive."""

    def __init__(self, device: torch.device, classes: list[str]):
        super().__init__(device, 'precision', 'recall')
        self.classes = classes
        self.counts = torch.zeros(3, len(classes), dtype=torch.int64, device=device)  # hits, predicted, present
        self.by_size = torch.zeros(2, len(SIZES), dtype=torch.int64, device=device)  # found, present

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss (), logits N x C, and N x 3 x C booleans, by size of object."""
        labels, predicted = targets.any(1), outputs > 0
        counts = torch.stack([(labels & predicted).sum(0), predicted.sum(0), labels.sum(0)])
        found = (targets & predicted[:, None]).sum((0, 2))
        self.counts += counts
        self.by_size += torch.stack([found, targets.sum((0, 2))])
        super().update(loss, outputs, targets)
        precision, recall, _ = 100 * rates(counts.sum(1))
        self.averages['precision'].update(precision, len(targets))
        self.averages['recall'].update(recall, len(targets))

    def reduce(self) -> None:
        """Count what all processes counted."""
        super().reduce()
        self.counts, self.by_size = all_reduce_sum(self.counts), all_reduce_sum(self.by_size)

    def progress(self) -> str:
        """Last values and averages of the batches, and on a second line the results so far."""
        loss, precision, recall = self.averages.values()
        return (
            f'Loss {loss.value:.4f} ({loss.average:.4f})\tPrecision {precision.value:.2f} ({precision.average:.2f})\t'
            f'Recall {recall.value:.2f} ({recall.average:.2f})\n{_in_words(MultiLabelCounts.compute(self))}'
        )

    def compute(self) -> dict[str, Any]:
        """Loss, and in % P_C, R_C, F_C (means over classes) and P_O, R_O, F_O (of summed counts)."""
        results = torch.cat([rates(self.counts).mean(1), rates(self.counts.sum(1))]).mul(100).tolist()
        return {'loss': self.averages['loss'].average, **dict(zip(NAMES, results, strict=True))}

    def summary(self, results: dict[str, Any]) -> str:
        """The line that ends an evaluation."""
        return f' * {_in_words(results)}'

    def state_dict(self) -> dict[str, Any]:
        """What a resumed epoch goes on counting from."""
        return {'averages': super().state_dict(), 'counts': self.counts.cpu(), 'by_size': self.by_size.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        super().load_state_dict(state['averages'])
        self.counts.copy_(state['counts'])
        self.by_size.copy_(state['by_size'])


class MultiLabelScores(MultiLabelCounts):
    """With average precision per class and recall by object size: what validation reports."""

    def __init__(self, device: torch.device, classes: list[str]):
        super().__init__(device, classes)
        self.scores = [torch.zeros(0, len(classes), device=device)]
        self.labels = [torch.zeros(0, len(classes), dtype=torch.bool, device=device)]

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch, and keep its scores and labels."""
        super().update(loss, outputs, targets)
        self.scores.append(outputs)
        self.labels.append(targets.any(1))

    def reduce(self) -> None:
        """Count what all processes counted."""
        super().reduce()
        self.scores = [all_gather_rows(torch.cat(self.scores))]
        self.labels = [all_gather_rows(torch.cat(self.labels))]

    def compute(self) -> dict[str, Any]:
        """Beside the counts' results: mAP in %, recall by size in %, and `classes`, a row of results per class."""
        of_classes = average_precision(torch.cat(self.scores), torch.cat(self.labels))
        found, present = self.by_size.tolist()
        recalls = {f'recall_{size}': 100 * f / max(p, 1) for size, f, p in zip(SIZES, found, present, strict=True)}
        mean, absent = 100 * of_classes.nanmean().nan_to_num().item(), int(of_classes.isnan().sum())
        table = {'classes_without_positives': absent, 'classes': self._table(of_classes)}
        return {**super().compute(), 'mAP': mean, **recalls, **table}

    def summary(self, results: dict[str, Any]) -> str:
        """The line that ends an evaluation, and mAP and recall by size on one of their own."""
        recalls = ' '.join(f'{size} {results[f"recall_{size}"]:.2f}' for size in SIZES)
        absent = results['classes_without_positives']
        return f'{super().summary(results)}\n   mAP {results["mAP"]:.2f} ({absent} classes absent) Recall {recalls}'

    def _table(self, average_precisions: Tensor) -> list[dict[str, Any]]:
        precisions = [None if value != value else 100 * value for value in average_precisions.tolist()]  # NaN: absent
        names = 'class', 'positives', 'precision', 'recall', 'f', 'ap'
        rates_in_percent = (100 * rates(self.counts)).tolist()
        rows = zip(self.classes, self.counts[2].tolist(), *rates_in_percent, precisions, strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]


def _in_words(results: dict[str, Any]) -> str:
    return ' '.join(f'{name} {results[name]:.2f}' for name in NAMES)


def rates(counts: Tensor) -> Tensor:
    """Precision, recall and F of (hits, predicted, present), 3 x ..., each 0 where there is no hit: 3 x ..."""
    hits, predicted, present = counts.to(widest_float(counts.device))
    precision, recall = hits / predicted.clamp(min=1), hits / present.clamp(min=1)
    return torch.stack([precision, recall, 2 * hits / (predicted + present).clamp(min=1)])


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision per class, of scores N x C and booleans N x C; NaN for a class without positives. C.

    The sum over thresholds of (recall gained) x (precision there), as scikit-learn's average_precision_score has it:
    no interpolation, and samples of equal score count together.
    """
    scores, order = scores.sort(0, descending=True)
    labels = labels.gather(0, order)
    count, device = len(scores), scores.device
    places = torch.arange(count, device=device)[:, None].expand_as(scores)
    ends_tie = torch.ones_like(labels)
    ends_tie[:-1] = scores[:-1] != scores[1:]
    end = torch.where(ends_tie, places, count).flip(0).cummin(0).values.flip(0)  # place of the last of equal score
    precision = labels.cumsum(0).gather(0, end).to(widest_float(device)) / (end + 1)
    return (precision * labels).sum(0) / labels.sum(0)
