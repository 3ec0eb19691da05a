"""Loss and metrics of segmentation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.device import HostCopy, Runner
from utils.distributed import all_reduce_sum, world_size
from utils.metrics import Metrics

IGNORED = 255  # the label of pixels that do not count


class Target(NamedTuple):
    """The truth of an image, or stacked, of a batch."""

    labels: Tensor  # uint8 H x W, 255: does not count
    index: int  # of the image in its set


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
        self.counts = all_reduce_sum(self.counts)

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


def segmentation_loss(outputs: Tensor, targets: Target) -> Tensor:
    """Cross-entropy of logits or log-probabilities N x C x H x W, mean over the pixels that count; 0 if none does."""
    total, count = _summed_loss(outputs, targets)
    return total / count.clamp(min=1)


def shared_segmentation_loss(outputs: Tensor, targets: Target) -> Tensor:
    """This process's part of the loss over the batches of all processes: the mean of the parts is that loss.

    All processes must call it together. A mean of their own means would weigh pixels by who has them.
    """
    total, count = _summed_loss(outputs, targets)
    return total / all_reduce_sum(count).clamp(min=1) * world_size()


def _summed_loss(outputs: Tensor, targets: Target) -> tuple[Tensor, Tensor]:
    labels = targets.labels.long()
    return F.cross_entropy(outputs, labels, ignore_index=IGNORED, reduction='sum'), (labels != IGNORED).sum()


class RunningLoss(Metrics):
    """The loss of the last batch and its exponential average over all epochs, as printed; an epoch's mean is logged."""

    decay = 0.99  # the reference's

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.loss, self.smooth = self.averages['loss'], None  # the average is none before the first batch

    @property
    def smooth_loss(self) -> float | None:
        """The exponential average; None before the first batch."""
        return None if self.smooth is None else self.smooth.item()

    @smooth_loss.setter
    def smooth_loss(self, value: float | None) -> None:
        self.smooth = None if value is None else torch.full_like(self.loss.last, value)

    def update(self, loss: Tensor, outputs: Tensor, targets: Target) -> None:
        """Count a batch by this process's part () of its loss; the mean of the parts is the loss of all."""
        super().update(all_reduce_sum(loss.detach()) / world_size(), outputs, targets)
        before = self.loss.last if self.smooth is None else self.smooth
        self.smooth = self.decay * before + (1 - self.decay) * self.loss.last

    def progress(self) -> str:
        """Last value and exponential average, in the reference's form."""
        return f'loss: {self.loss.value:.4f} ({self.smooth_loss:.4f})'

    def state_dict(self) -> dict[str, Any]:
        """What a resumed epoch goes on counting from."""
        return {**super().state_dict(), 'smooth': self.smooth_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        super().load_state_dict(state)
        self.smooth_loss = state['smooth']


class SegmentationScores(Metrics):
    """Intersection over union of the classes; hands the predictions on to be kept."""

    def __init__(
        self, device: torch.device, classes: list[str], images: int, keep: Callable[[Tensor, list[int]], None]
    ):
        super().__init__(device)
        self.confusion = ConfusionMatrix(device, classes)
        self.done, self.images, self.keep = 0, images, keep
        self.copies: tuple[HostCopy, HostCopy] | None = None  # of the last batch's predictions and indices

    def update(self, loss: Tensor, outputs: Tensor, targets: Target) -> None:
        """Count a batch: its mean loss (), scores N x C x H x W, labels and indices."""
        predictions = outputs.argmax(1).to(torch.uint8)
        super().update(loss, outputs, targets)
        self.confusion.update(predictions, targets.labels)
        self.done += len(predictions)
        copies = HostCopy(predictions), HostCopy(targets.index)
        self._keep_copies()  # of the batch before, while the device is busy with this one
        self.copies = copies

    def _keep_copies(self) -> None:
        if self.copies:
            predictions, index = self.copies
            self.keep(predictions.get(), index.get().tolist())
        self.copies = None

    def reduce(self) -> None:
        """Count what all processes counted."""
        super().reduce()
        self.confusion.reduce()

    def progress(self) -> str:
        """How many images are done, about as many by each process."""
        return f'{min(self.done * world_size(), self.images)}/{self.images}'

    def compute(self) -> dict[str, Any]:
        """The mean loss and what ConfusionMatrix computes; the last predictions are handed on."""
        self._keep_copies()
        return {**super().compute(), **self.confusion.compute()}

    def summary(self, results: dict[str, Any]) -> str:
        """A line per class, the mean over all as in the reference, and the mean over the classes present."""
        lines = [f'IoU {name}: {value:.2f}' for name, value in results['iou'].items()]
        lines.append(f'Mean IoU: {results["miou"]:.2f}')
        lines.append(f'Mean IoU over the {results["present"]} classes present: {results["miou_present"]:.2f}')
        return '\n'.join(lines)


@dataclass(frozen=True)
class MultiScale:
    """A segmenter that is shown each image at every scale and, with `flip`, mirrored as well."""

    runner: Runner
    scales: Sequence[float]
    flip: bool

    def __call__(self, images: Tensor) -> Tensor:
        """N x 3 x H x W -> log-probabilities N x C x H x W, of the probabilities' mean."""
        total, least = 0, torch.finfo(torch.float32).tiny
        for scale in self.scales:
            total = total + self._at(images, scale)
            if self.flip:
                total += self._at(images.flip(3), scale).flip(3)
        return (total / (len(self.scales) * (1 + self.flip))).clamp_min(least).log()

    def _at(self, images: Tensor, scale: float) -> Tensor:
        """Probabilities at a scale, whose sides are brought to 16n + 1, as output stride 16 likes them."""
        size = images.shape[-2:]
        if scale == 1:
            return self.runner(images).softmax(1)
        scaled = [max(round((side * scale - 1) / 16), 1) * 16 + 1 for side in size]
        images = F.interpolate(images, scaled, mode='bilinear', align_corners=True)
        return F.interpolate(self.runner(images).softmax(1), size, mode='bilinear', align_corners=True)
