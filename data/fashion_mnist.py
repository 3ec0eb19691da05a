"""Write Fashion-MNIST, 70,000 labelled photos of 28 x 28 pixels (MIT licence), as folders for classify.py.

    python data/fashion_mnist.py OUT                             OUT/{train,val}/CLASS/NUMBER.png, 60,000 and 10,000
    python data/fashion_mnist.py OUT --source DIR                from DIR's four *-ubyte.gz files

The files are those that Zalando Research published; Debian and Ubuntu have them in the package dataset-fashion-mnist,
in the folder that --source names by default.
"""

import gzip
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # run as a file: the packages are in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file
from tqdm import tqdm

from utils.cli import Parser
from utils.errors import UserError, exit_cleanly, reading
from utils.files import staged_folder

SOURCE = Path('/usr/share/datasets/fashion-mnist')
PARTS = {'train': 'train', 'val': 't10k'}  # our folder, their file names
CLASSES = (
    't-shirt_or_top', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle_boot'
)  # fmt: skip
SIDE = 28


def make_parser() -> Parser:
    """Make the parser of the arguments."""
    parser = Parser(__doc__)
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to write')
    parser.add_argument('--source', type=Path, default=SOURCE, metavar='DIR', help='folder of the four .gz files')
    return parser


def main(args: Namespace) -> None:
    """Convert all four files, or none if one of them is not as it should be."""
    parts = {part: read_part(args.source, name) for part, name in PARTS.items()}
    with staged_folder(args.out) as folder:
        for part, (images, labels) in parts.items():
            for name in CLASSES:
                (folder / part / name).mkdir(parents=True)
            for number, (image, label) in enumerate(zip(tqdm(images, part, disable=None), labels, strict=True)):
                Image.fromarray(image).save(folder / part / CLASSES[label] / f'{number:05d}.png')
    print(f'{args.out}: {" + ".join(str(len(labels)) for _, labels in parts.values())} pictures')


def read_part(source: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images (N x 28 x 28) and labels (N, each 0..9), uint8, of the part `name`: train or t10k."""
    images_path, labels_path = source / f'{name}-images-idx3-ubyte.gz', source / f'{name}-labels-idx1-ubyte.gz'
    images, labels = read_idx(images_path, read_image_file), read_idx(labels_path, read_label_file)
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(f'{images_path}: images of {images.shape[1]} x {images.shape[2]} pixels, not {SIDE} x {SIDE}')
    if len(images) != len(labels):
        raise UserError(f'{labels_path}: {len(labels)} labels for {len(images)} images')
    if set(np.unique(labels)) != set(range(len(CLASSES))):
        raise UserError(f'{labels_path}: its labels are not 0 to {len(CLASSES) - 1}')
    return images, labels


def read_idx(path: Path, read: Callable[[str], Tensor]) -> np.ndarray:
    """Read a gzipped idx file of bytes by torchvision's function for images, N x H x W, or for labels, N.

    Raises UserError that names the file if it is missing, damaged or of another form.
    """
    if not path.is_file():
        hint = "install Debian's package dataset-fashion-mnist, or name the folder of the four files by --source"
        raise UserError(f'no file {path}: {hint}')
    with reading(f'{path} is no idx file of its kind, or damaged: fetch it anew'), TemporaryDirectory() as scratch:
        unzipped = Path(scratch) / path.stem  # torchvision reads no gzip
        unzipped.write_bytes(gzip.decompress(path.read_bytes()))
        return read(str(unzipped)).numpy().astype(np.uint8)


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
