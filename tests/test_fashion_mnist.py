"""data/fashion_mnist.py: the pictures it writes, and the files it refuses."""

import gzip
import re
import struct

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from data import fashion_mnist
from tests.conftest import Script
from tests.pictures import write_fashion

IMAGES, LABELS = 'train-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'
CLASSES = ['t-shirt_or_top', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle_boot']


# 30 to learn from and 20 held out, all grey levels different from their neighbours'.
LEVELS = (np.arange(30 * 28 * 28).reshape(30, 28, 28) * 7).astype(np.uint8)
PHOTOS = {'train': LEVELS, 'val': LEVELS[::-1][:20]}


@pytest.fixture
def convert(tmp_path):
    """data/fashion_mnist.py with an output folder and the source."""
    source = write_fashion(tmp_path / 'source', *PHOTOS.values())
    return Script(fashion_mnist, tmp_path / 'out', f'--source {source}')


def test_every_picture_lies_under_its_class(convert, tmp_path, capsys):
    convert()
    for part, images in PHOTOS.items():
        folder = ImageFolder(tmp_path / 'out' / part)
        assert (len(folder), folder.classes) == (len(images), sorted(CLASSES))
        for number, image in enumerate(images):
            path = tmp_path / 'out' / part / CLASSES[number % 10] / f'{number:05d}.png'
            assert np.array_equal(np.asarray(folder.loader(path))[..., 0], image)
    assert 'exists already' in convert.error(capsys)


def zipped(kind, *sizes, values=30 * 784):
    header = struct.pack(f'>BBBB{len(sizes)}I', 0, 0, kind, len(sizes), *sizes)
    return lambda whole: gzip.compress(header + bytes(values))


@pytest.mark.parametrize(
    'name, spoil, told',
    [
        (LABELS, None, f'no file .*{LABELS}: install .* dataset-fashion-mnist'),
        (LABELS, lambda whole: b'', LABELS),
        (IMAGES, lambda whole: whole[: len(whole) // 2], IMAGES),
        (LABELS, lambda whole: whole[:-4], LABELS),
        (IMAGES, lambda whole: whole[:40] + bytes(20) + whole[60:], IMAGES),
        (IMAGES, lambda whole: gzip.compress(b'PK\3\4' + bytes(100)), 'no idx file'),
        (IMAGES, zipped(8, 30), 'no idx file'),
        (IMAGES, zipped(13, 30, 28, 28), 'no idx file'),  # of floats
        (IMAGES, lambda whole: gzip.compress(b'\0\0\x08\x03' + bytes(5)), ': 0 values'),  # ends in its header
        (IMAGES, zipped(8, 30, 28, 28, values=30 * 784 + 1), ': 23521 values'),
        (IMAGES, zipped(8, 30, 14, 56), '14 x 56'),
        (IMAGES, zipped(8, 29, 28, 28, values=29 * 784), '30 labels for 29 images'),
        (LABELS, lambda whole: gzip.compress(gzip.decompress(whole).replace(b'\x09', b'\x0a')), 'are not 0 to 9'),
    ],
)
def test_spoiled_files_are_named_and_nothing_is_written(convert, tmp_path, capsys, name, spoil, told):
    path = tmp_path / 'source' / name
    whole = path.read_bytes()
    path.write_bytes(spoil(whole)) if spoil else path.unlink()
    assert re.search(told, convert.error(capsys))
    assert [path.name for path in tmp_path.iterdir()] == ['source']
