"""ImageNet-like folders, FOLDER/CLASS/..., and the reference's augmentation and test crop."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import io, transforms
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor

from utils.errors import UserError, named, reading

PRINTED_ABOUT = 'JPEG', 'MPO', 'TIFF'  # whose libraries print, past Python, what they find wrong
AREA, ASPECT = [0.08, 1.0], [3 / 4, 4 / 3]  # of the reference's random crops


class ImageFolder(Dataset):
    """Pairs of a transformed picture below FOLDER/CLASS and the number of its class, in torchvision's order.

    Paths are kept in an array: looking at strings of a list would copy them, reference count by reference count, into
    each forked worker. Raises UserError if there is no class, a class holds no picture, or a folder cannot be read.
    """

    def __init__(self, folder: Path, transform: Callable[[Any], Tensor], load: Callable[[str], Any] | None = None):
        self.transform, self.load = transform, load or pil_loader
        _, classes, _ = next(os.walk(folder, onerror=_refuse))
        self.classes = sorted(classes)
        pictures = [_pictures(os.path.join(folder, name)) for name in self.classes]
        if not pictures:
            raise UserError(f'{folder}: holds no class folder')
        empty = [name for name, paths in zip(self.classes, pictures, strict=True) if not paths]
        if empty:
            raise UserError(f'{folder}: no picture in class {named(empty)} (looked for {", ".join(IMG_EXTENSIONS)})')
        self.paths = np.array([os.fsencode(path) for paths in pictures for path in paths])
        self.labels = np.repeat(np.arange(len(pictures)), [len(paths) for paths in pictures])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.load(os.fsdecode(self.paths[index]))), int(self.labels[index])


def _pictures(folder: str) -> list[str]:
    """The paths of the pictures in a class folder and in the folders in it."""
    places = sorted(os.walk(folder, onerror=_refuse, followlinks=True))
    paths = (os.path.join(place, name) for place, _, names in places for name in sorted(names))
    return [path for path in paths if path.lower().endswith(IMG_EXTENSIONS)]


def _refuse(error: OSError) -> NoReturn:
    """Raises UserError for a folder that cannot be read, whose pictures torchvision would leave out in silence."""
    raise UserError(f'cannot read folder {error.filename}: {error.strerror}') from error


class RandomResizedCropFlip:
    """A random crop of 8 to 100 % of the area resized to size x size, flipped half the time; uint8 3 x size x size.

    Crops, flips and the random numbers drawn for them are torchvision's. So is the way of resizing, bilinear and
    antialiased, but it is torch's instead of Pillow's, which takes a quarter of the time and rounds otherwise.
    """

    def __init__(self, size: int):
        self.size = size

    def __call__(self, picture: Tensor | Image.Image) -> Tensor:
        """Crop a picture, uint8 3 x H x W or of Pillow, to uint8 3 x size x size."""
        pixels = picture if isinstance(picture, Tensor) else pil_to_tensor(picture)
        top, left, height, width = transforms.RandomResizedCrop.get_params(pixels, AREA, ASPECT)
        crop = pixels[None, :, top : top + height, left : left + width]
        crop = crop.contiguous(memory_format=torch.channels_last)  # which torch resizes fastest
        resized = F.interpolate(crop, (self.size, self.size), mode='bilinear', antialias=True)[0]
        return resized.flip(2) if torch.rand(1) < 0.5 else resized


def eval_transform(size: int) -> transforms.Compose:
    """The shorter side to 256/224 of `size`, then the central size x size; uint8 3 x size x size."""
    return transforms.Compose(
        [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), transforms.PILToTensor()]
    )


def scaled_crop(size: int, factor: float) -> transforms.Compose:
    """eval_transform with everything in the picture `factor` times as large; uint8 4 x size x size.

    Where the picture no longer fills the crop the fourth channel is 0, else 1: there it will have the mean color.
    """
    side = max(1, round(factor * (size * 256 / 224)))
    with_ones = partial(F.pad, pad=(0, 0, 0, 0, 0, 1), value=1)  # 3 x H x W -> 4 x H x W; the crop adds zeros around
    return transforms.Compose(
        [transforms.Resize(side), transforms.PILToTensor(), with_ones, transforms.CenterCrop(size)]
    )


def check_same_classes(folder: Path, train: list[str], val: list[str]) -> None:
    """Raises UserError unless both parts of the set in `folder` have the same classes, in the same order."""
    if train != val:
        differing = sorted(set(train) ^ set(val))
        message = f'only one has {named(differing)}' if differing else 'their order differs'
        raise UserError(f'{folder}: train and val must have the same classes; {message}')


def decode_image(path: str) -> Tensor:
    """Read a picture as uint8 3 x H x W, of pil_loader's values; UserError if it cannot be decoded to its end.

    torchvision decodes JPEGs with the library that Pillow uses, but without its copies. From 0.29 on it says that it
    will lose its decoder: without it Pillow decodes everything, to the same values.
    """
    decode = getattr(io, 'decode_jpeg', None)
    with opened(path) as image:
        if decode and (image.format, image.mode) == ('JPEG', 'RGB'):
            image.fp.seek(0)
            content = torch.from_numpy(np.fromfile(image.fp, np.uint8))
            with suppress(RuntimeError, AttributeError):  # damaged, or torchvision is built without it: let Pillow tell
                return decode(content)
    return pil_to_tensor(pil_loader(path))


def pil_loader(path: str) -> Image.Image:
    """Read a picture as RGB; UserError that names it if it cannot be decoded to its end."""
    with opened(path) as image:
        if image.mode != 'RGB':
            return image.convert('RGB')
        image.load()
        return image


@contextmanager
def opened(path: str | Path, kind: str = 'image') -> Iterator[Image.Image]:
    """Yield a picture whose header is read and whose rest can be; whatever fails is a UserError that names it."""
    with (
        reading(f'cannot read {kind} {path}'),
        Image.open(path) as image,
        _silent_stderr() if image.format in PRINTED_ABOUT else nullcontext(),
    ):
        yield image


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide what libraries print, of which they raise what matters."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
