"""utils/image_folder.py: training crops against torchvision's, pixels against Pillow, damage named, loading workers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import io, transforms

from data.drawn_photos import draw_photo
from utils.data import Seeded, collate
from utils.errors import UserError
from utils.image_folder import RandomCrop, central_crop, open_folder, open_image, open_pixels, open_train_and_val

THEIRS = transforms.Compose(
    [transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
)


@pytest.fixture(scope='module')
def photo():
    return draw_photo(np.random.default_rng(0))


@pytest.mark.parametrize('size', [(500, 375), (120, 90), (40, 300), (300, 9), (1, 1)])
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


def test_crops_and_flips_spread_as_torchvisions():
    """On a ramp, the pixels of a crop tell which part it was: its size, its shape, whether it is flipped."""
    across, down = np.meshgrid(np.arange(250), np.arange(250))
    ramp = Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8))
    torch.manual_seed(0)
    drawn = torch.stack([RandomCrop(16)(ramp) for _ in range(1500)]).float()
    widths = 2 * (drawn[:, 0, 8, 12] - drawn[:, 0, 8, 4])  # half a crop, away from its border, where it is smoothed
    heights = 2 * (drawn[:, 1, 12, 8] - drawn[:, 1, 4, 8])
    areas, aspects = (widths.abs() * heights).div(250**2), widths.abs() / heights
    assert 0.47 < (widths < 0).float().mean() < 0.53
    assert 0.07 < areas.min() < 0.09
    assert 0.93 < areas.max() < 1.02
    assert 0.48 < areas.median() < 0.56  # a little under 0.54: large crops of an extreme shape do not fit
    assert 0.7 < aspects.min() < 0.78
    assert 1.28 < aspects.max() < 1.4


def test_crops_depend_on_seed_epoch_and_sample_alone(folder):
    samples = [Seeded(open_folder(folder / 'train', RandomCrop(32), open_pixels), seed) for seed in (0, 0, 1)]
    keys = [(0, 0), (1, 0), (0, 1), (0, 7)]
    one, same, other = (collate([each[key] for key in keys])[0] for each in samples)
    assert torch.equal(one, same)
    assert not any(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])
    torch.manual_seed(5)
    assert torch.equal(collate([samples[0][key] for key in keys])[0], one)


def test_training_opens_pixels_and_testing_pictures(folder):
    train, val = open_train_and_val(folder, 32)
    assert (type(train.transform), train.load, val.load) == (RandomCrop, open_pixels, open_image)


def variants(photo):
    """Pictures as they occur, ImageNet's odd ones among them, by name and arguments of saving."""
    small = photo.resize((61, 37))
    return {
        'plain.jpg': (small, {}),
        'progressive.jpg': (small, {'progressive': True, 'quality': 95, 'subsampling': 0}),
        'grey.jpg': (small.convert('L'), {}),
        'cmyk.jpg': (small.convert('CMYK'), {}),
        'turned.jpg': (small, {'exif': bytes.fromhex('457869660000') + small_exif()}),
        'a png.JPEG': (small, {'format': 'PNG'}),
        'palette.png': (small.quantize(9), {}),
        'alpha.png': (small.convert('RGBA'), {}),
        'sixteen.png': (Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), {}),
        'plain.webp': (small, {}),
        'plain.tif': (small, {}),
        'plain.bmp': (small, {}),
    }


def small_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned; neither Pillow nor torchvision does so unasked
    return exif.tobytes().removeprefix(b'Exif\x00\x00')


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


def test_plain_jpegs_are_not_decoded_by_pillow(photo, tmp_path, monkeypatch):
    if not hasattr(io, 'decode_jpeg'):
        pytest.skip('this torchvision has no decoder')
    photo.save(tmp_path / 'a.jpg')
    monkeypatch.setattr('utils.image_folder.open_image', None)
    assert open_pixels(str(tmp_path / 'a.jpg')).shape == (3, 375, 500)


@pytest.mark.parametrize('load', [open_image, open_pixels])
@pytest.mark.parametrize('keep', [0, 2, 300, 0.5, -20, -1, 'gone'])
def test_damaged_jpeg_is_named(photo, tmp_path, load, keep):
    path = tmp_path / 'a.jpg'
    photo.save(path)
    whole = path.read_bytes()
    path.unlink() if keep == 'gone' else path.write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else keep])
    with pytest.raises(UserError, match=f'cannot read image {path}: '):
        load(str(path))


@pytest.mark.parametrize(
    'way, transform, load',
    [('fork', RandomCrop(8), open_pixels), ('fork', central_crop(8), None), ('spawn', RandomCrop(8), open_pixels)],
)
def test_workers_load_what_the_process_itself_loads(tmp_path, way, transform, load):
    for number in range(6):
        path = tmp_path / 'pictures' / f'c{number % 2}' / f'{number}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 12, 3), 40 * number, np.uint8)).save(path)
    samples = Seeded(open_folder(tmp_path / 'pictures', transform, load), 0)
    keys = [[(1, number) for number in (5, 0, 3)]]
    loader = DataLoader(samples, batch_sampler=keys, num_workers=1, collate_fn=collate, multiprocessing_context=way)
    ((images, labels),) = loader
    assert labels.tolist() == [1, 0, 1]
    assert images.tolist() == [samples[key][0].tolist() for key in keys[0]]
    assert [round(float(image.float().mean()), -1) for image in images] == [200, 0, 40]
