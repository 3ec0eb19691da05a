"""data/image_folder.py: training crops against torchvision's, pixels against Pillow, damage named, loading workers."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import io, transforms

from data.image_folder import RandomCrop, open_image, open_pixels, open_train_and_val
from tools.benchmark.loaders import draw_photo
from utils.errors import UserError
from utils.loader import Seeded, collate

THEIRS = transforms.Compose(
    [transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
)


@pytest.fixture(scope='module')
def photo():
    return draw_photo(np.random.default_rng(0))


@pytest.mark.parametrize('size', [(500, 375), (40, 300), (300, 9), (1, 1)])
def test_crops_and_flips_are_torchvisions_and_pixels_but_for_rounding(photo, size):
    """Pillow and torch round their weights otherwise: one pixel in ten may differ, by one of 255 levels."""
    image, differing = photo.resize(size), []
    for seed in range(60):
        torch.manual_seed(seed)
        expected, state = THEIRS(image), torch.get_rng_state()
        torch.manual_seed(seed)
        drawn = RandomCrop(64)(image)
        assert torch.equal(torch.get_rng_state(), state)
        assert (drawn.shape, drawn.dtype) == (expected.shape, torch.uint8)
        differing.append((drawn.int() - expected.int()).abs())
    assert torch.stack(differing).max() <= 1
    assert torch.stack(differing).float().mean() < 0.1


def variants(photo):
    """Pictures as they occur, ImageNet's odd ones among them, by name and arguments of saving."""
    small, turned = photo.resize((61, 37)), Image.Exif()
    turned[0x0112] = 6  # to be shown turned; neither Pillow nor torchvision does so unasked
    return {
        'plain.jpg': (small, {}),
        'progressive.jpg': (small, {'progressive': True, 'quality': 95, 'subsampling': 0}),
        'grey.jpg': (small.convert('L'), {}),
        'cmyk.jpg': (small.convert('CMYK'), {}),
        'turned.jpg': (small, {'exif': turned}),
        'a png.JPEG': (small, {'format': 'PNG'}),
        'palette.png': (small.quantize(9), {}),
        'alpha.png': (small.convert('RGBA'), {}),
        'sixteen.png': (Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), {}),
        'plain.tif': (small, {}),
    }


@pytest.mark.parametrize('decoder', [True, False])
def test_pixels_are_those_of_pillow(photo, tmp_path, decoder, monkeypatch):
    if not decoder:
        monkeypatch.delattr(io, 'decode_jpeg', raising=False)
    for name, (image, arguments) in variants(photo).items():
        image.save(tmp_path / name, **arguments)
        with Image.open(tmp_path / name) as opened:
            expected = np.array(opened.convert('RGB'))
        assert np.array_equal(open_image(str(tmp_path / name)), expected), name
        assert torch.equal(open_pixels(str(tmp_path / name)), torch.from_numpy(expected).permute(2, 0, 1)), name


@pytest.mark.skipif(not hasattr(io, 'decode_jpeg'), reason='this torchvision has no decoder')
def test_plain_jpegs_are_not_decoded_by_pillow(photo, tmp_path, monkeypatch):
    photo.save(tmp_path / 'a.jpg')
    monkeypatch.setattr('data.image_folder.open_image', None)
    assert open_pixels(str(tmp_path / 'a.jpg')).shape == (3, 375, 500)


@pytest.mark.parametrize('load', [open_image, open_pixels])
@pytest.mark.parametrize('keep', [0, 2, 300, 9000, -20, -1, None])
def test_damaged_jpeg_is_named(photo, tmp_path, load, keep):
    path = tmp_path / 'a.jpg'
    if keep is not None:
        photo.save(path)
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f'cannot read image {path}: '):
        load(str(path))


@pytest.mark.parametrize('part', [0, 1])
def test_workers_load_what_the_process_itself_loads(tmp_path, part):
    for place in 'train', 'val':
        for number in range(6):
            path = tmp_path / place / f'c{number % 2}' / f'{number}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 12, 3), 40 * number, np.uint8)).save(path)
    folder = open_train_and_val(tmp_path, 8)[part]
    assert folder.load is (open_pixels, open_image)[part]
    samples, keys = Seeded(folder, 0), [[(1, number) for number in (5, 0, 3)]]
    copied = pickle.loads(pickle.dumps(samples))  # as where workers are not forked
    ((images, labels),) = DataLoader(copied, batch_sampler=keys, num_workers=1, collate_fn=collate)
    assert labels.tolist() == [1, 0, 1]
    assert images.tolist() == [samples[key][0].tolist() for key in keys[0]]
    assert [round(float(image.float().mean()), -1) for image in images] == [200, 0, 40]
