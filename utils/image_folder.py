"""ImageNet-like folders, FOLDER/CLASS/*.jpg, and the reference's augmentation and test crop."""

from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder

from utils.errors import UserError, named


def random_crop(size: int) -> transforms.Compose:
    """A random crop of 8 to 100 % of the area resized to size x size, flipped half the time; uint8 3 x size x size."""
    return transforms.Compose(
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )


def central_crop(size: int) -> transforms.Compose:
    """The shorter side to 256/224 of `size`, then the central size x size; uint8 3 x size x size."""
    return transforms.Compose(
        [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), transforms.PILToTensor()]
    )


def scaled_crop(size: int, factor: float) -> transforms.Compose:
    """central_crop with everything in the picture `factor` times as large; uint8 4 x size x size.

    Where the picture no longer fills the crop the fourth channel is 0, else 1: there it will have the mean colour.
    """
    side = max(1, round(factor * (size * 256 / 224)))
    return transforms.Compose(
        [transforms.Resize(side), transforms.PILToTensor(), with_inside, transforms.CenterCrop(size)]
    )


def with_inside(pixels: Tensor) -> Tensor:
    """Adds a channel of ones, which says what is of the picture: 3 x H x W -> 4 x H x W."""
    return F.pad(pixels, (0, 0, 0, 0, 0, 1), value=1)


def open_folder(folder: Path, transform: transforms.Compose) -> ImageFolder:
    """The pictures of `folder`, a folder per class; UserError if it or a class of it is empty or missing."""
    if not folder.is_dir():
        raise UserError(f'no folder {folder}')
    try:
        return ImageFolder(str(folder), transform, loader=open_image)
    except FileNotFoundError as error:
        raise UserError(f'{folder}: {str(error).splitlines()[0]}') from error


def open_train_and_val(folder: Path, size: int) -> tuple[ImageFolder, ImageFolder]:
    """FOLDER/train, augmented, and FOLDER/val; UserError unless both have the same classes."""
    train = open_folder(folder / 'train', random_crop(size))
    val = open_folder(folder / 'val', central_crop(size))
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        raise UserError(f'{folder}: train and val must have the same classes; only one has {named(differing)}')
    return train, val


def open_image(path: str) -> Image.Image:
    """The picture as RGB; UserError that names it if it cannot be decoded to its end."""
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f'cannot read image {path}: {error}') from error
