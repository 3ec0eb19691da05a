"""The palette of PASCAL VOC's masks; `python data/palette.py` writes data/pascal_seg_colormap.mat anew."""

from pathlib import Path

import numpy as np
from PIL import Image

MAT_FILE = Path(__file__).resolve().parent / 'pascal_seg_colormap.mat'


def voc_palette() -> np.ndarray:
    """The colors of labels 0..255 as 256 x 3 uint8 (red, green, blue).

    Bits 0, 3, 6 of a label, lowest first, are bits 7, 6, 5 ... of red; bits 1, 4, 7 those of green; 2, 5 those of blue.
    """
    labels = np.arange(256, dtype=np.uint8)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (labels >> bit & 1) << (7 - bit // 3)
    return palette


def mask_image(labels: np.ndarray) -> Image.Image:
    """Make a picture in VOC's colors, whose pixels are indices of the palette, from labels: uint8 H x W."""
    image = Image.fromarray(labels)
    image.putpalette(voc_palette().tobytes())
    return image


def write_mat(path: Path) -> None:
    """The palette as `colormap`, 256 x 3 doubles in 0..1, in the format of the reference's file."""
    from scipy.io import savemat  # here, because what only needs the colors shall start without SciPy

    savemat(path, {'colormap': voc_palette() / 255})


if __name__ == '__main__':
    write_mat(MAT_FILE)
