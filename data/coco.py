"""MS-COCO as a multi-label set: which classes an image holds, at which size of object."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from data.image_folder import pil_loader
from utils.errors import UserError, named, reading
from utils.multilabel import SIZES

AREA_BOUNDS = 32**2, 96**2  # of pixels, as COCO's evaluation has them: small below the first, large from the second on


@dataclass(frozen=True, eq=False)
class MultiLabelImages(Dataset):
    """Pairs of a transformed image and its 3 x C booleans; in arrays, which forked workers share."""

    folder: Path
    files: np.ndarray  # N names
    present: np.ndarray  # N x 3 x C booleans: an object of this size and class is in the image
    classes: list[str]  # C, in the order of the file's categories
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, np.ndarray]:
        image = pil_loader(str(self.folder / str(self.files[index])))
        return self.transform(image), self.present[index]


def squashed(size: int) -> transforms.Compose:
    """Resize the whole image to size x size, its aspect ratio not kept; uint8 3 x size x size."""
    return transforms.Compose([transforms.Resize((size, size)), transforms.PILToTensor()])


def open_part(folder: Path, part: str, year: str, transform: Callable[[Any], Tensor]) -> MultiLabelImages:
    """Open FOLDER/PARTYEAR with FOLDER/annotations/instances_PARTYEAR.json; UserError if files are missing or wrong."""
    images = folder / f'{part}{year}'
    if not images.is_dir():
        raise UserError(f'no folder {images}')
    files, present, classes = read_annotations(folder / 'annotations' / f'instances_{part}{year}.json')
    there = {path.name for path in images.iterdir()}
    missing = [name for name in map(str, files) if name not in there and not (images / name).is_file()]
    if missing:
        raise UserError(f'{images}: {len(missing)} images of the annotation file are not there: {named(missing)}')
    return MultiLabelImages(images, files, present, classes, transform)


def read_annotations(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read files, present and classes of MultiLabelImages; images without annotations stay in, crowds count.

    Raises UserError that names the file and the fault if it is damaged, two images or categories have one id, or an
    annotation has no valid image, category or area.
    """
    if not path.is_file():
        raise UserError(f'no annotation file {path}')
    with reading(f'{path}: not an annotation file of COCO, or a damaged one'):
        content = json.loads(path.read_bytes())
        images, categories, annotations = (content.get(key) for key in ('images', 'categories', 'annotations'))
        if not images or not categories or not annotations:  # without the last, as image_info_*.json
            raise UserError(f'{path}: lists no images, no categories or no annotations')
        for note in annotations:
            area = note.get('area')
            if not (isinstance(area, int | float) and 0 <= area < 1e300):
                raise UserError(f'{path}: annotation {note.get("id")} has the area {area}, not a number from 0 on')
        rows = _places(path, annotations, 'image_id', [image['id'] for image in images])
        columns = _places(path, annotations, 'category_id', [category['id'] for category in categories])
        sizes = np.digitize(np.array([note['area'] for note in annotations], dtype=np.float64), AREA_BOUNDS)
        present = np.zeros((len(images), len(SIZES), len(categories)), dtype=bool)
        present[rows, sizes, columns] = True
        files = np.array([str(image['file_name']) for image in images])
        return files, present, [str(category['name']) for category in categories]


def _places(path: Path, annotations: list[dict], key: str, ids: list[int | str]) -> np.ndarray:
    """Find the place of each annotation's image or category among these ids."""
    place = {number: position for position, number in enumerate(ids)}
    if len(place) < len(ids):
        twice = next(number for position, number in enumerate(ids) if place[number] != position)
        raise UserError(f'{path}: two entries with the {key.replace("_", " ")} {twice}')
    for note in annotations:
        if note.get(key) not in place:
            raise UserError(f'{path}: annotation {note.get("id")} names an unknown {key}, {note.get(key)}')
    return np.array([place[note[key]] for note in annotations])
