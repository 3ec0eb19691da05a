"""tools/miniature/data.py: shapes and photos whose size is known, samples with a third each, errors by thirds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data import scenes
from data.scenes import CLASS_NAMES
from tools.miniature import data as scaled_objects
from tools.miniature.data import FACTORS, SHAPE_SIZES, THIRDS, jitter, jittered_photos, shapes, third_of
from tools.miniature.report import ScaleErrors

WHITE = np.full((28, 28), 255, np.uint8)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """The first 48 shapes of each part, and their folder."""
    folder = tmp_path_factory.mktemp('shapes')
    return folder, {part: shapes(folder, 0, part, 48, 1) for part in ('train', 'val')}


def test_shapes_are_drawn_from_seed_part_and_number_and_kept(drawn, tmp_path, monkeypatch):
    folder, sets = drawn
    longer = shapes(tmp_path, 0, 'train', 52, 1)
    assert np.array_equal(longer.pictures[:48], sets['train'].pictures)
    assert np.array_equal(longer.sizes[:48], sets['train'].sizes)
    for other in sets['val'], shapes(tmp_path, 1, 'train', 8, 1):
        assert not np.isin(other.sizes, sets['train'].sizes).any()
    assert np.bincount(sets['train'].labels).tolist() == [6] * len(CLASS_NAMES)
    assert 7.5 <= sets['train'].sizes.min() < 9 and 38 < sets['train'].sizes.max() <= 45
    assert SHAPE_SIZES == (7.5, 45)
    monkeypatch.setattr(scaled_objects, 'draw_cells', None)
    assert np.array_equal(shapes(folder, 0, 'val', 48, 1).pictures, sets['val'].pictures)


def test_shapes_look_as_large_as_they_are_said_to_be(tmp_path, monkeypatch):
    """White squares on black, not turned: what is bright is as wide as the size says."""
    monkeypatch.setattr(scenes, '_background', lambda rng: np.zeros((scenes.SCENE, scenes.SCENE, 3), np.float32))
    monkeypatch.setattr(scenes, '_clutter', lambda rng, canvas: canvas)
    monkeypatch.setattr(scenes, '_fill', lambda rng, texture, hue, points: np.float32(1))
    monkeypatch.setattr(scenes, 'MAX_TURN', 0)
    monkeypatch.setattr(scenes, 'CLASSES', dict.fromkeys(CLASS_NAMES, scenes.CLASSES['dotted_square']))
    found = shapes(tmp_path, 0, 'train', 16, 1)
    for picture, size in zip(found.pictures, found.sizes, strict=True):
        _, *places = np.nonzero(picture > 127)
        assert [np.ptp(place) + 1 for place in places] == pytest.approx([size, size], abs=1.5)


def test_photos_are_drawn_from_seed_part_and_number_as_large_as_they_are_said_to_be(fashion):
    few, photos = (jittered_photos(fashion, 0, 'train', count) for count in (10, 40))
    assert np.array_equal(few.pictures, photos.pictures[:10])
    assert few.labels.tolist() == list(range(10))
    assert np.array_equal(jitter(0, 'train', 3, WHITE)[0], few.pictures[3, 0])
    for others in (1, 'train', 3), (0, 'val', 3), (0, 'train', 4):
        assert jitter(*others, WHITE)[1] != few.sizes[3]
    for picture, size in zip(photos.pictures[:, 0], photos.sizes, strict=True):
        rows, columns = np.nonzero(picture > 150)
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == round(size)
        assert len(rows) == round(size) ** 2


def test_photos_are_scaled_log_uniformly_and_lie_everywhere():
    found = [jitter(0, 'val', number, WHITE) for number in range(600)]
    counts, _ = np.histogram(np.log([size / 28 for _, size in found]), bins=6, range=np.log(FACTORS))
    assert counts.sum() == 600 and (abs(counts - 100) < 40).all()  # 4 standard deviations
    small = [np.argwhere(picture > 150).mean(0) for picture, size in found if size < 14]
    assert np.min(small) < 8 and np.max(small) > 39
    assert np.array(small).mean() == pytest.approx(23.5, abs=2)


def test_a_sample_is_a_picture_with_class_and_third(drawn):
    assert [third_of(size, (10, 80)) for size in (10, 19.9, 20.1, 39.9, 40.1, 80)] == [0, 0, 1, 1, 2, 2]
    train = drawn[1]['train']
    picture, target = train[5]
    assert picture.shape == (3, 48, 48) and picture.dtype == torch.uint8
    assert target.tolist() == [train.labels[5], third_of(train.sizes[5], SHAPE_SIZES)]
    upside_down = replace(train, transform=lambda pixels: pixels.flip(1))
    assert torch.equal(upside_down[5][0], picture.flip(1))


def test_errors_by_size_add_up():
    torch.manual_seed(0)
    errors = ScaleErrors(torch.device('cpu'))
    outputs, labels, thirds = torch.randn(50, 8), torch.randint(8, (50,)), torch.randint(3, (50,))
    for part in (slice(0, 32), slice(32, 50)):
        errors.update(torch.tensor(1.0), outputs[part], torch.stack([labels, thirds], 1)[part])
    found, wrong = errors.compute(), outputs.argmax(1) != labels
    assert found['err1'] == pytest.approx(2 * wrong.sum().item())
    assert list(found['pictures'].values()) == thirds.bincount().tolist()
    for number, name in enumerate(THIRDS):
        assert found[name] == pytest.approx(100 * wrong[thirds == number].double().mean().item())
    resumed = ScaleErrors(torch.device('cpu'))
    resumed.load_state_dict(errors.state_dict())
    assert resumed.compute() == found
