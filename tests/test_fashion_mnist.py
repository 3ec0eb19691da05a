"""data/fashion_mnist.py: the pictures it writes, and the files it refuses."""

import gzip
import struct

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from data import fashion_mnist
from data.fashion_mnist import CLASSES, read_idx
from tests.conftest import Script


def write_idx(path, values: np.ndarray) -> None:
    """An idx file of bytes, as the format's description says."""
    header = struct.pack(f'>BBBB{values.ndim}I', 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def source(tmp_path):
    """The four files: 30 pictures to learn from and 20 held out, all grey levels different from their neighbours'."""
    folder = tmp_path / 'source'
    folder.mkdir()
    for name, count in (('train', 30), ('t10k', 20)):
        images = np.arange(count * 28 * 28, dtype=np.uint32).reshape(count, 28, 28) * 7
        write_idx(folder / f'{name}-images-idx3-ubyte.gz', images.astype(np.uint8))
        write_idx(folder / f'{name}-labels-idx1-ubyte.gz', np.arange(count, dtype=np.uint8)[::-1] % 10)
    return folder


@pytest.fixture
def convert(tmp_path, source):
    """data/fashion_mnist.py with an output folder and the source."""
    return Script(fashion_mnist, tmp_path / 'out', f'--source {source}')


def refused(convert, capsys, tmp_path) -> str:
    """The line with which a conversion ends that must leave nothing behind."""
    line = convert.error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ['source']
    return line


@pytest.mark.parametrize(('part', 'name', 'count'), [('train', 'train', 30), ('val', 't10k', 20)])
def test_every_picture_lies_under_its_class(convert, source, tmp_path, part, name, count):
    convert()
    images = read_idx(source / f'{name}-images-idx3-ubyte.gz', 3)
    folder = ImageFolder(tmp_path / 'out' / part)
    assert len(folder) == count
    assert sorted(folder.classes) == sorted(CLASSES)
    for number, label in enumerate((count - 1 - np.arange(count)) % 10):
        path = tmp_path / 'out' / part / CLASSES[label] / f'{number:05d}.png'
        assert np.array_equal(np.asarray(folder.loader(path))[..., 0], images[number])


def test_a_folder_that_is_there_is_kept(convert, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'precious').touch()
    assert 'exists already' in convert.error(capsys)
    assert (tmp_path / 'out' / 'precious').exists()


def test_a_missing_file_is_named_with_the_way_to_get_it(convert, source, tmp_path, capsys):
    (source / 't10k-labels-idx1-ubyte.gz').unlink()
    line = refused(convert, capsys, tmp_path)
    assert 't10k-labels-idx1-ubyte.gz' in line
    assert 'dataset-fashion-mnist' in line


@pytest.mark.parametrize('name', ['train-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'])
@pytest.mark.parametrize('kept', [0, 9, 0.5, -4])
def test_a_truncated_file_is_named(convert, source, tmp_path, capsys, name, kept):
    whole = (source / name).read_bytes()
    (source / name).write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert name in refused(convert, capsys, tmp_path)


def test_a_damaged_file_is_named(convert, source, tmp_path, capsys):
    path = source / 'train-images-idx3-ubyte.gz'
    damaged = bytearray(path.read_bytes())
    damaged[40:60] = bytes(20)
    path.write_bytes(damaged)
    assert path.name in refused(convert, capsys, tmp_path)


@pytest.mark.parametrize(
    ('content', 'complaint'),
    [
        (b'\0\0\x08\x01' + struct.pack('>I', 30) + bytes(30), 'no idx file'),  # one dimension
        (b'\0\0\x0d\x03' + struct.pack('>3I', 30, 28, 28) + bytes(30 * 784), 'no idx file'),  # floats
        (b'PK\3\4' + bytes(100), 'no idx file'),
        (b'\0\0\x08\x03' + bytes(5), '0 values'),  # ends in its header
        (b'\0\0\x08\x03' + struct.pack('>3I', 30, 28, 28) + bytes(783), '783 values'),
        (b'\0\0\x08\x03' + struct.pack('>3I', 30, 28, 28) + bytes(30 * 784 + 1), '23521 values'),
        (b'\0\0\x08\x03' + struct.pack('>3I', 30, 14, 56) + bytes(30 * 784), '14 x 56'),
        (b'\0\0\x08\x03' + struct.pack('>3I', 29, 28, 28) + bytes(29 * 784), '30 labels for 29 images'),
    ],
)
def test_other_content_is_refused(convert, source, tmp_path, capsys, content, complaint):
    (source / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(content))
    assert complaint in refused(convert, capsys, tmp_path)


def test_labels_beyond_the_classes_are_refused(convert, source, tmp_path, capsys):
    write_idx(source / 'train-labels-idx1-ubyte.gz', np.arange(30, dtype=np.uint8) % 11)
    assert 'train-labels' in refused(convert, capsys, tmp_path)
