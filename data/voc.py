"""PASCAL VOC as a segmentation set: images and masks by the lists of the reference."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.image_folder import opened, pil_loader
from utils.errors import UserError, named, reading
from utils.segmentation import IGNORED, Target

CLASSES = [
    *('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow'),
    *('diningtable', 'dog', 'horse', 'motorbike', 'person', 'potted-plant', 'sheep', 'sofa', 'train', 'tv/monitor'),
]

Transform = Callable[[Image.Image, Image.Image], tuple[Tensor, Tensor]]


class VOCSegmentation(Dataset):
    """Pairs of a transformed image, uint8 4 x H x W, and its Target."""

    def __init__(self, images: list[Path], masks: list[Path], transform: Transform):
        self.images, self.masks, self.transform = images, masks, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, labels = self.transform(*open_scene(self.images[index], self.masks[index]))
        return image, Target(labels, index)


def open_voc(root: Path, name: str, transform: Transform) -> VOCSegmentation:
    """Open the images and masks that ROOT/list/NAME names; UserError if there are none, or a file is not there."""
    path = root / 'list' / name
    if not path.is_file():
        raise UserError(f'no list {path}')
    with reading(f'cannot read {path}'):
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    pairs = [line.split() for line in lines if line.strip()]
    wrong = [' '.join(pair) for pair in pairs if len(pair) != 2]
    if wrong or not pairs:
        form = '/JPEGImages/x.jpg /SegmentationClassAug/x.png'
        raise UserError(f'{path}: {named(wrong, 1) or "empty"}; lines must have the form {form}')
    images, masks = ([root / part.lstrip('/') for part in column] for column in zip(*pairs, strict=True))
    missing = [file for file in (*images, *masks) if not file.is_file()]
    if missing:
        raise UserError(f'{path} names {len(missing)} files that are not there: {named(missing)}')
    return VOCSegmentation(images, masks, transform)


def open_scene(image_path: Path, mask_path: Path) -> tuple[Image.Image, Image.Image]:
    """Read a picture as RGB, and its mask of labels below 21, or 255; UserError that says what is wrong with them."""
    image, mask = pil_loader(str(image_path)), open_mask(mask_path)
    if image.size != mask.size:
        sizes = ('{} x {}'.format(*picture.size) for picture in (mask, image))
        raise UserError(f'{mask_path} is {" pixels, its image ".join(sizes)}')
    return image, mask


def open_mask(path: Path) -> Image.Image:
    """Read a mask, a palette's indices or grey; UserError that names it if it is not one of VOC's labels."""
    with opened(path, 'mask') as mask:
        mask.load()
    if mask.mode not in ('P', 'L'):
        raise UserError(f'{path}: a mask is a palette or grey picture, a label per pixel; this one is {mask.mode}')
    wrong = [label for label, count in enumerate(mask.histogram()) if count and len(CLASSES) <= label != IGNORED]
    if wrong:
        raise UserError(f'{path}: label {named(wrong)}; labels go from 0 to {len(CLASSES) - 1}, and 255 does not count')
    return mask


def size_of(path: Path) -> tuple[int, int]:
    """Read height and width of a picture from its header; UserError that names it if it has none."""
    with opened(path) as image:
        return image.height, image.width


def groups_of_one_size(sizes: list[tuple[int, int]]) -> list[list[int]]:
    """Group the places of equal sizes."""
    groups = defaultdict(list)
    for place, size in enumerate(sizes):
        groups[size].append(place)
    return list(groups.values())
