"""data/image_folder.py: crops, pixels, damage, workers; which pictures a folder holds."""

import os
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import io, transforms
from torchvision.datasets import ImageFolder

from classify import open_sets
from data import image_folder
from data.image_folder import RandomResizedCropFlip, decode_image, pil_loader
from tools.benchmark.loaders import draw_photo
from utils.errors import UserError
from utils.loader import SeededDataset, collate

PHOTO = draw_photo(np.random.default_rng(0))
THEIRS = transforms.Compose(
    [transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
)


@pytest.mark.parametrize('size', [(500, 375), (40, 300), (300, 9), (1, 1)])
def test_crops_and_flips_are_torchvisions_and_pixels_but_for_rounding(size):
    """Pillow and torch round their weights otherwise: one pixel in ten may differ, by one of 255 levels."""
    image, differing = PHOTO.resize(size), []
    for seed in range(60):
        torch.manual_seed(seed)
        expected, state = THEIRS(image), torch.get_rng_state()
        torch.manual_seed(seed)
        drawn = RandomResizedCropFlip(64)(image)
        assert torch.equal(torch.get_rng_state(), state)
        assert (drawn.shape, drawn.dtype) == (expected.shape, torch.uint8)
        differing.append((drawn.int() - expected.int()).abs())
    assert torch.stack(differing).max() <= 1
    assert torch.stack(differing).float().mean() < 0.1


@pytest.mark.parametrize('decoder', [hasattr(io, 'decode_jpeg'), False])
def test_pixels_are_those_of_pillow_which_does_not_decode_plain_jpegs(tmp_path, decoder, monkeypatch):
    """Pictures as they occur, ImageNet's odd ones among them."""
    if not decoder:
        monkeypatch.delattr(io, 'decode_jpeg', raising=False)
    small, turned = PHOTO.resize((61, 37)), Image.Exif()
    turned[0x0112] = 6  # to be shown turned; neither Pillow nor torchvision does so unasked
    for name, image, options in [
        ('plain.jpg', small, {}),
        ('grey.jpg', small.convert('L'), {}),
        ('cmyk.jpg', small.convert('CMYK'), {}),
        ('turned.jpg', small, {'exif': turned}),
        ('a png.JPEG', small, {'format': 'PNG'}),
        ('sixteen.png', Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), {}),
    ]:
        image.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as opened:
            expected = np.array(opened.convert('RGB'))
        assert np.array_equal(pil_loader(str(tmp_path / name)), expected), name
        assert torch.equal(decode_image(str(tmp_path / name)), torch.from_numpy(expected).permute(2, 0, 1)), name
    if decoder:
        monkeypatch.setattr(image_folder, 'pil_loader', None)
        assert decode_image(str(tmp_path / 'plain.jpg')).shape == (3, 37, 61)


def draw(_):
    return torch.rand(1, 1, 1)


def test_augmentation_is_of_seed_epoch_and_sample_alone_whatever_process_draws_it(folder):
    train, val = open_sets(Namespace(data=folder, image_size=8, evaluate=False))
    assert (train.load, val.load) == (decode_image, pil_loader)
    train.transform = draw
    keys = [(epoch, number) for epoch in (0, 1) for number in (17, 0, 7)]
    copied = pickle.loads(pickle.dumps(SeededDataset(train, 0)))  # as where workers are not forked
    ((drawn, labels),) = DataLoader(copied, batch_sampler=[keys], num_workers=1, collate_fn=collate)
    assert labels.tolist() == 2 * [2, 0, 1]
    here, other = ([SeededDataset(train, seed)[key][0].item() for key in keys] for seed in (0, 1))
    assert drawn.flatten().tolist() == here
    assert len({*here, *other}) == 2 * len(keys)


# Which pictures a folder holds


NAMES = [
    *('ant/b.jpg', 'ant/a.JPEG', 'ant/B.PNG', 'ant/.jpg', 'ant/notes.txt', 'ant/jpg', 'ant/x.jpg.part', 'Bee/z.pgm'),
    *('ant/sub/c.png', 'ant/sub/deep/er/d.ppm', 'ant/sub z/e.bmp', 'ant/sub.jpg/f.Jpg', '_c/one.tif', 'stray.jpg'),
    *('caf\u00e9/\u732b.jpg', 'caf\u00e9/a\nb.jpg', 'w s/a b.jpg', f'Bee/{os.fsdecode(bytes([255]))}.jpg'),
]


def touch(folder, *names):
    for path in map(folder.joinpath, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def paths_in(folder):
    """Our set with each picture's path in its place."""
    return image_folder.ImageFolder(folder, transform=str, load=str)


def test_samples_are_torchvisions(tmp_path, monkeypatch):
    touch(tmp_path / 'pictures', *NAMES)
    touch(tmp_path / 'other', 'g.jpg', 'in/h.png')
    links = {'linked': 'other', 'ant/l.png': 'other/g.jpg', 'ant/broken.png': 'no', 'ant/o.png': 'pictures/ant/o.png'}
    for link, target in links.items():
        (tmp_path / 'pictures' / link).symlink_to(tmp_path / target)
    monkeypatch.chdir(tmp_path)
    for folder in tmp_path / 'pictures', Path('pictures'):
        ours, theirs = paths_in(folder), ImageFolder(str(folder))
        assert list(ours) == theirs.samples
        assert (ours.classes, ours.labels.tolist(), len(ours)) == (theirs.classes, theirs.targets, len(theirs))
        assert ours[-1] == theirs.samples[-1]


def test_empty_and_unreadable_folders_are_named(tmp_path):
    touch(tmp_path, 'ant/1.jpg', *(f'none{number}/notes.txt' for number in range(9)))
    with pytest.raises(UserError, match=r'no picture in class none0, .*, none4 and 4 more \(looked for \.jpg'):
        paths_in(tmp_path)
    with pytest.raises(UserError, match='none8: holds no class folder'):
        paths_in(tmp_path / 'none8')
    with pytest.raises(UserError, match='cannot read folder .*gone: No such file'):
        paths_in(tmp_path / 'gone')  # as one without permission
