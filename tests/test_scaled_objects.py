"""data/scaled_objects.py: shapes and photos whose size is known, as samples with a third each, and errors by thirds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data import scaled_objects, scenes
from data.scaled_objects import (
    FACTORS,
    SHAPE_SIZES,
    THIRDS,
    Target,
    draw_cells,
    jitter,
    jittered_photos,
    shapes,
    third_of,
)
from data.scenes import CLASS_NAMES
from tests.test_fashion_mnist import write_idx
from utils.scale_errors import ScaleErrors


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Fashion-MNIST's four files, of 40 white photos each."""
    folder = tmp_path_factory.mktemp('fashion')
    for name in ('train', 't10k'):
        write_idx(folder / f'{name}-images-idx3-ubyte.gz', np.full((40, 28, 28), 255, np.uint8))
        write_idx(folder / f'{name}-labels-idx1-ubyte.gz', np.arange(40, dtype=np.uint8) % 10)
    return folder


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """The first 48 shapes of each part, and their folder."""
    folder = tmp_path_factory.mktemp('shapes')
    return folder, {part: shapes(folder, 0, part, 48, 1) for part in ('train', 'val')}


def test_shapes_are_drawn_from_seed_part_and_number(drawn, tmp_path):
    folder, sets = drawn
    longer = shapes(tmp_path, 0, 'train', 52, 1)
    other = shapes(tmp_path, 1, 'train', 8, 1)
    assert np.array_equal(longer.pictures[:48], sets['train'].pictures)
    assert np.array_equal(longer.sizes[:48], sets['train'].sizes)
    assert not np.isin(sets['train'].sizes, sets['val'].sizes).any()
    assert not np.isin(other.sizes, sets['train'].sizes).any()


def test_shapes_are_read_from_the_cache(drawn, monkeypatch):
    folder, sets = drawn
    monkeypatch.setattr(scaled_objects, 'draw_cells', None)
    assert np.array_equal(shapes(folder, 0, 'val', 48, 1).pictures, sets['val'].pictures)


def test_every_shape_is_as_often_as_the_others(drawn):
    assert np.bincount(drawn[1]['train'].labels).tolist() == [6] * len(CLASS_NAMES)


def test_shapes_look_as_large_as_they_are_said_to_be(monkeypatch):
    """White squares on black, not turned: what is bright is as wide as the size says."""
    monkeypatch.setattr(scenes, '_background', lambda rng: np.zeros((scenes.SCENE, scenes.SCENE, 3), np.float32))
    monkeypatch.setattr(scenes, '_clutter', lambda rng, canvas: canvas)
    monkeypatch.setattr(scenes, '_fill', lambda rng, texture, hue, points: np.float32(1))
    monkeypatch.setattr(scenes, 'MAX_TURN', 0)
    monkeypatch.setattr(scenes, 'CLASSES', dict.fromkeys(CLASS_NAMES, scenes.CLASSES['dotted_square']))
    for number in range(4):
        pictures, _, sizes = draw_cells(0, 'train', number)
        for picture, size in zip(pictures, sizes, strict=True):
            _, rows, columns = np.nonzero(picture > 127)
            assert np.ptp(rows) + 1 == pytest.approx(size, abs=1.5)
            assert np.ptp(columns) + 1 == pytest.approx(size, abs=1.5)


def test_shapes_take_the_whole_range_of_sizes(drawn):
    """Log-uniform: 96 of them are at most 5 standard deviations (23) from 32 in each third."""
    low, high = SHAPE_SIZES
    assert (low, high) == (7.5, 45)
    sizes = np.concatenate([part.sizes for part in drawn[1].values()])
    assert sizes.min() >= low - 1e-6 and sizes.max() <= high + 1e-6
    counts = np.bincount([third_of(size, SHAPE_SIZES) for size in sizes], minlength=3)
    assert (abs(counts - 32) < 23).all()


def test_photos_are_drawn_from_seed_part_and_number(source):
    few, more = (jittered_photos(source, 0, 'train', count) for count in (10, 20))
    assert np.array_equal(few.pictures, more.pictures[:10])
    photo = np.full((28, 28), 255, np.uint8)
    assert np.array_equal(jitter(0, 'train', 3, photo)[0], few.pictures[3, 0])
    for others in (jitter(1, 'train', 3, photo), jitter(0, 'val', 3, photo), jitter(0, 'train', 4, photo)):
        assert others[1] != few.sizes[3]
    assert few.labels.tolist() == list(range(10))


def test_photos_look_as_large_as_they_are_said_to_be(source):
    photos = jittered_photos(source, 0, 'train', 40)
    for picture, size in zip(photos.pictures[:, 0], photos.sizes, strict=True):
        rows, columns = np.nonzero(picture > 150)
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == round(size)
        assert len(rows) == round(size) ** 2


def test_photos_are_scaled_log_uniformly_and_lie_everywhere():
    found = [jitter(0, 'val', number, np.full((28, 28), 255, np.uint8)) for number in range(600)]
    logs = np.log([size / 28 for _, size in found])
    low, high = np.log(FACTORS)
    assert logs.min() >= low and logs.max() <= high
    counts, _ = np.histogram(logs, bins=6, range=(low, high))
    assert (abs(counts - 100) < 40).all()  # 4 standard deviations
    small = [np.argwhere(picture > 150).mean(0) for picture, size in found if size < 14]
    assert np.min(small) < 8 and np.max(small) > 39
    assert np.array(small).mean() == pytest.approx(23.5, abs=2)


def test_thirds_are_equal_parts_of_the_logarithm():
    sizes = [10, 19.9, 20.1, 39.9, 40.1, 80]
    assert [third_of(size, (10, 80)) for size in sizes] == [0, 0, 1, 1, 2, 2]


def test_a_sample_is_a_picture_with_class_and_third(drawn):
    train = drawn[1]['train']
    picture, target = train[5]
    assert picture.shape == (3, 48, 48) and picture.dtype == torch.uint8
    assert (int(target.label), int(target.third)) == (train.labels[5], third_of(train.sizes[5], SHAPE_SIZES))
    upside_down = replace(train, transform=lambda pixels: pixels.flip(1))
    assert torch.equal(upside_down[5][0], picture.flip(1))


def test_errors_by_size_add_up():
    torch.manual_seed(0)
    errors = ScaleErrors(torch.device('cpu'))
    outputs, labels, thirds = torch.randn(50, 8), torch.randint(8, (50,)), torch.randint(3, (50,))
    for part in (slice(0, 32), slice(32, 50)):
        errors.update(torch.tensor(1.0), outputs[part], Target(labels[part], thirds[part]))
    found, wrong = errors.compute(), outputs.argmax(1) != labels
    assert found['err1'] == pytest.approx(2 * wrong.sum().item())
    for number, name in enumerate(THIRDS):
        assert found[name] == pytest.approx(100 * wrong[thirds == number].double().mean().item())
    weighted = sum(found[name] * found['pictures'][name] for name in THIRDS)
    assert weighted / 50 == pytest.approx(found['err1'])
    resumed = ScaleErrors(torch.device('cpu'))
    resumed.load_state_dict(errors.state_dict())
    assert resumed.compute() == found
