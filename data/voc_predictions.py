"""Predicted masks as pictures: in VOC's palette, and beside image and truth."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from torch import Tensor

from data.palette import voc_palette
from data.voc import Scenes, open_scene
from utils.errors import UserError


class Predictions:
    """Context that collects predictions and at its end, unless an error ends it, puts them in FOLDER/val/NAME.png.

    With `overlay` also image | truth | prediction as FOLDER/overlays/NAME.jpg. NAME is the true mask's.
    """

    def __init__(self, folder: Path, scenes: Scenes, sizes: list[tuple[int, int]], overlay: bool):
        self.folder, self.scenes, self.sizes, self.overlay = folder, scenes, sizes, overlay
        self.palette = voc_palette()

    def __enter__(self) -> 'Predictions':
        for folder in (self.folder / 'val', self.folder / 'overlays'):
            if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
                raise UserError(f'cannot write to {folder}: it is no folder, or one that is read-only')
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.staging = TemporaryDirectory(prefix='.predictions-', dir=self.folder)
        except OSError as error:
            raise UserError(f'cannot write to --output {self.folder}: {error.strerror}') from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        with self.staging as staging:
            if kind is None:
                for file in sorted(Path(staging).glob('*/*')):
                    self._put(file, self.folder / file.relative_to(staging))

    def keep(self, predictions: Tensor, indices: list[int]) -> None:
        """Write predictions, uint8 N x H x W, of the padded images of these indices, cut to the images' sizes."""
        for prediction, index in zip(predictions.numpy(), indices, strict=True):
            size = self.sizes[index]
            top, left = self.scenes.transform.corner(size)
            mask = Image.fromarray(prediction[top : top + size[0], left : left + size[1]])
            mask.putpalette(self.palette.tobytes())
            name = self.scenes.masks[index].stem
            self._save(mask, f'val/{name}.png')
            if self.overlay:
                self._save(self._beside(mask, index), f'overlays/{name}.jpg')

    @staticmethod
    def _put(file: Path, target: Path) -> None:
        try:
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
        except OSError as error:
            raise UserError(f'cannot write {target}: {error.strerror}') from error

    def _beside(self, prediction: Image.Image, index: int) -> Image.Image:
        scene = open_scene(self.scenes.images[index], self.scenes.masks[index])
        image, truth, predicted = map(np.asarray, (*scene, prediction))
        return Image.fromarray(np.concatenate([image, *(coloured(image, m) for m in (truth, predicted))], 1))

    def _save(self, picture: Image.Image, name: str) -> None:
        path = Path(self.staging.name) / name
        try:
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
        except OSError as error:
            raise UserError(f'cannot write {self.folder / name}: {error.strerror or error}') from error


def coloured(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 H x W x 3, H x W -> the image with its objects in their labels' colours, the background as it is."""
    blend = (0.4 * image + 0.6 * voc_palette()[labels]).round().astype(np.uint8)
    return np.where(labels[..., None] > 0, blend, image)
