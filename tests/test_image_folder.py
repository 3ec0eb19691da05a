"""utils/image_folder.py: training crops against torchvision's, pixels against Pillow, damage named, loading workers."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import io, transforms

from data.drawn_photos import draw_photo
from utils import image_folder
from utils.data import Seeded, collate
from utils.errors import UserError
from utils.image_folder import RandomCrop, open_image, open_pixels, open_train_and_val

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


@pytest.mark.parametrize('decoder', [hasattr(io, 'decode_jpeg'), False])
def test_pixels_are_those_of_pillow_which_does_not_decode_plain_jpegs(photo, tmp_path, decoder, monkeypatch):
    """Pictures as they occur, ImageNet's odd ones among them."""
    if not decoder:
        monkeypatch.delattr(io, 'decode_jpeg', raising=False)
    small, turned = photo.resize((61, 37)), Image.Exif()
    turned[0x0112] = 6  # to be shown turned; neither Pillow nor torchvision does so unasked
    for name, image, options in [
        ('plain.jpg', small, {}),
        ('progressive.jpg', small, {'progressive': True, 'quality': 95, 'subsampling': 0}),
        ('grey.jpg', small.convert('L'), {}),
        ('cmyk.jpg', small.convert('CMYK'), {}),
        ('turned.jpg', small, {'exif': turned}),
        ('a png.JPEG', small, {'format': 'PNG'}),
        ('palette.png', small.quantize(9), {}),
        ('alpha.png', small.convert('RGBA'), {}),
        ('sixteen.png', Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), {}),
        ('plain.tif', small, {}),
    ]:
        image.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as opened:
            expected = np.array(opened.convert('RGB'))
        assert np.array_equal(open_image(str(tmp_path / name)), expected), name
        assert torch.equal(open_pixels(str(tmp_path / name)), torch.from_numpy(expected).permute(2, 0, 1)), name
    if decoder:
        monkeypatch.setattr(image_folder, 'open_image', None)
        assert open_pixels(str(tmp_path / 'plain.jpg')).shape == (3, 37, 61)


@pytest.mark.parametrize('load', [open_image, open_pixels])
@pytest.mark.parametrize('keep', [0, 2, 300, 9000, -20, -1, None])
def test_damaged_jpeg_is_named(photo, tmp_path, load, keep):
    path = tmp_path / 'a.jpg'
    if keep is not None:
        photo.save(path)
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f'cannot read image {path}: '):
        load(str(path))


@pytest.mark.parametrize('part, load', [(0, open_pixels), (1, open_image)])
def test_workers_load_what_the_process_itself_loads(folder, part, load):
    pictures = open_train_and_val(folder, 8)[part]
    assert pictures.load is load
    samples, keys = Seeded(pictures, 0), [(1, number) for number in (17, 0, 7)]
    copied = pickle.loads(pickle.dumps(samples))  # as where workers are not forked
    ((images, labels),) = DataLoader(copied, batch_sampler=[keys], num_workers=1, collate_fn=collate)
    assert labels.tolist() == [[2, 0, 1], [5, 0, 2]][part]
    assert images.tolist() == [samples[key][0].tolist() for key in keys]
    assert images.float().mean((1, 2, 3)).tolist() == pytest.approx((labels * 30 + 40).tolist(), abs=10)
