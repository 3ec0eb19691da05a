"""Testing at several scales and mirrored: the mean of the probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.compute import Runner


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
