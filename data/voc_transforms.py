"""Transforms of an image and its mask together, to uint8 4 x H x W and uint8 H x W.

The fourth channel is 1 in the image and 0 in what was added around it: there the image will be 0 once it is normalized
(the reference padded afterwards), and the label is 255.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from utils.segmentation import IGNORED


@dataclass(frozen=True)
class RandomScaleCrop:
    """Flipped half the time, scaled by 0.5 to 2 (log-uniform), padded all around, cropped at random.

    Of what a side lacks each of its ends gets half, rounded up: the crop may leave out the odd row or column.
    """

    size: int  # of the crop's sides

    def __call__(self, image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
        """An RGB image and its mask -> uint8 4 x size x size, uint8 size x size."""
        flip, scale, down, right = torch.rand(4).tolist()
        if flip < 0.5:
            image, mask = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (image, mask))
        width, height = (max(1, round(side * 2 ** (2 * scale - 1))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
        top, left = self._corner(height, down), self._corner(width, right)
        box = max(left, 0), max(top, 0), min(left + self.size, width), min(top + self.size, height)
        return padded(image.crop(box), mask.crop(box), self.size, self.size, max(-top, 0), max(-left, 0))

    def _corner(self, side: int, part: float) -> int:
        """Where in a side of the image the crop begins, below 0 in the padding, for a `part` of 0 to 1."""
        padding = max((1 + self.size - side) // 2, 0)
        return int(part * (side + 2 * padding - self.size + 1)) - padding


@dataclass(frozen=True)
class PadToSize:
    """Padded all around: to `size`, or where the image is larger to the next 16n + 1, which suits output stride 16."""

    size: int

    def __call__(self, image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
        """An RGB image and its mask -> uint8 4 x H x W, uint8 H x W."""
        height, width = self.padded_size((image.height, image.width))
        return padded(image, mask, height, width, *self.corner((image.height, image.width)))

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width to which an image of these is padded."""
        height, width = (max(self.size, -(-(side - 1) // 16) * 16 + 1) for side in size)
        return height, width

    def corner(self, size: tuple[int, int]) -> tuple[int, int]:
        """Where the image's first row and column then are."""
        top, left = ((whole - side) // 2 for whole, side in zip(self.padded_size(size), size, strict=True))
        return top, left


def padded(
    image: Image.Image, mask: Image.Image, height: int, width: int, top: int, left: int
) -> tuple[Tensor, Tensor]:
    """An image and its mask within height x width pixels, their upper left corner at (top, left)."""
    around = left, width - left - image.width, top, height - top - image.height
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    inside = torch.ones_like(pixels[:1])
    labels = torch.from_numpy(np.array(mask))
    return F.pad(torch.cat([pixels, inside]), around), F.pad(labels, around, value=IGNORED)
