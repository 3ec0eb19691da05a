"""Predicted masks as pictures: in VOC's palette, and beside image and truth."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from data.palette import mask_image, voc_palette
from data.voc import VOCSegmentation, open_scene
from utils.errors import UserError, named
from utils.files import check_writable, writing, written_whole


class Predictions:
    """Context that collects predictions and at its end, unless an error ends it, puts them in FOLDER/val/NAME.png.

    With `overlay` also image | truth | prediction as FOLDER/overlays/NAME.jpg. NAME is the true mask's.
    """

    def __init__(self, folder: Path, scenes: VOCSegmentation, sizes: list[tuple[int, int]], overlay: bool):
        self.scenes, self.sizes, self.overlay = scenes, sizes, overlay
        self.masks = [folder / 'val' / f'{mask.stem}.png' for mask in scenes.masks]
        if len(set(self.masks)) < len(set(scenes.masks)):
            raise UserError(f'{folder / "val"} would hold masks of one name: {named(scenes.masks)}')
        self.overlays = [folder / 'overlays' / f'{mask.stem}.jpg' for mask in scenes.masks if overlay]

    def __enter__(self) -> 'Predictions':
        check_writable(self.masks[0], *self.overlays[:1])
        paths = list(dict.fromkeys(self.masks + self.overlays))  # a list may name an image twice
        self.writer = written_whole(*paths, sync=False)
        self.files = dict(zip(paths, self.writer.__enter__(), strict=True))
        return self

    def __exit__(self, *error) -> None:
        self.writer.__exit__(*error)

    def keep(self, predictions: Tensor, indices: list[int]) -> None:
        """Write predictions, uint8 N x H x W, of the padded images of these indices, cut to the images' sizes."""
        for prediction, index in zip(predictions.numpy(), indices, strict=True):
            height, width = self.sizes[index]
            top, left = self.scenes.transform.corner((height, width))
            labels = prediction[top : top + height, left : left + width]
            self._save(mask_image(labels), self.masks[index], 'PNG')
            if self.overlay:
                image, truth = map(np.asarray, open_scene(self.scenes.images[index], self.scenes.masks[index]))
                beside = np.concatenate([image, colored(image, truth), colored(image, labels)], 1)
                self._save(Image.fromarray(beside), self.overlays[index], 'JPEG')

    def _save(self, picture: Image.Image, path: Path, form: str) -> None:
        with writing(path):
            picture.save(self.files[path], format=form)


def colored(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 H x W x 3, H x W -> the image with its objects in their labels' colors, the background as it is."""
    blend = (0.4 * image + 0.6 * voc_palette()[labels]).round().astype(np.uint8)
    return np.where(labels[..., None] > 0, blend, image)
