"""Writes Fashion-MNIST, 70,000 labelled photos of 28 x 28 pixels (MIT licence), as folders for classify.py.

    python data/fashion_mnist.py OUT                             OUT/{train,val}/CLASS/NUMBER.png, 60,000 and 10,000
    python data/fashion_mnist.py OUT --source DIR                from DIR's four *-ubyte.gz files

The files are those that Zalando Research published; Debian and Ubuntu have them in the package dataset-fashion-mnist,
in the folder that --source names by default.
"""

import gzip
import sys
import zlib
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: the packages are in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.cli import Parser
from utils.errors import UserError, exit_cleanly
from utils.files import staged_folder

SOURCE = Path('/usr/share/datasets/fashion-mnist')
PARTS = {'train': 'train', 'val': 't10k'}  # our folder, their file names
CLASSES = (
    't-shirt_or_top', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle_boot'
)  # fmt: skip
SIDE = 28
UNSIGNED_BYTES = 0x08


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to write')
    parser.add_argument('--source', type=Path, default=SOURCE, metavar='DIR', help='folder of the four .gz files')
    return parser


def main(args: Namespace) -> None:
    """Convert all four files, or none if one of them is not as it should be."""
    parts = {part: read_part(args.source, name) for part, name in PARTS.items()}
    with staged_folder(args.out) as folder:
        for part, (images, labels) in parts.items():
            write_part(folder / part, images, labels)
    print(f'{args.out}: {" + ".join(str(len(labels)) for _, labels in parts.values())} pictures')


def read_part(source: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N x 28 x 28) and labels (N, each 0..9), uint8, of the part `name`: train or t10k."""
    images_path, labels_path = source / f'{name}-images-idx3-ubyte.gz', source / f'{name}-labels-idx1-ubyte.gz'
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(f'{images_path}: images of {images.shape[1]} x {images.shape[2]} pixels, not {SIDE} x {SIDE}')
    if len(images) != len(labels):
        raise UserError(f'{labels_path}: {len(labels)} labels for {len(images)} images')
    if set(np.unique(labels)) != set(range(len(CLASSES))):
        raise UserError(f'{labels_path}: its labels are not 0 to {len(CLASSES) - 1}')
    return images, labels


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of a gzipped idx file: two zeros, type, number of dimensions, big-endian sizes, values."""
    content = decompressed(path)
    if content[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
        raise UserError(f'{path} is no idx file of bytes in {dimensions} dimension{"s" * (dimensions > 1)}')
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start].ljust(4 * dimensions, b'\0'), '>u4').tolist()
    if len(content) - start != np.prod(shape, dtype=object):
        raise UserError(f'{path}: {max(len(content) - start, 0)} values where its header names {shape}: fetch it anew')
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def decompressed(path: Path) -> bytes:
    """The content of a gzipped file; UserError that names it if it is missing or damaged."""
    try:
        return gzip.decompress(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        hint = "install Debian's package dataset-fashion-mnist, or name the folder of the four files by --source"
        raise UserError(f'no file {path}: {hint}') from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'cannot read {path}: {error}; fetch it anew') from error


def write_part(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write FOLDER/CLASS/NUMBER.png for every image; the numbers are those of the file, from 0 on."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(tqdm(images, folder.name, disable=None), labels, strict=True)):
        Image.fromarray(image).save(folder / CLASSES[label] / f'{number:05d}.png')


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
