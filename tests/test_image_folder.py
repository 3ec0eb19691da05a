"""data/image_folder.py and data/folder_index.py: crops, pixels, damage, workers; which pictures a folder holds."""

import os
import pickle
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import io, transforms
from torchvision.datasets import ImageFolder

from data import folder_index, image_folder
from data.folder_index import cache_file, open_index, read_cache
from data.image_folder import RandomResizedCropFlip, decode_image, open_train_and_val, pil_loader
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
    train, val = open_train_and_val(folder, 8)
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
ALL = ['ant', 'bee', 'cat', 'pictures', 'sub']  # the folders of `pictures`
ALWAYS = ['bee', 'pictures', 'sub']  # and those of a class with a folder in it


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, where indexes of any size and of folders made just now are kept."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(folder_index, 'SMALLEST', 1)
    monkeypatch.setattr(folder_index, 'UNSETTLED_SECONDS', 0)
    return tmp_path / 'cache' / 'elastic'


def touch(folder, *names):
    for path in map(folder.joinpath, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def rest():
    """Let the file system's clock go on: a change after this has another time."""
    time.sleep(0.03)


@pytest.fixture
def pictures(tmp_path):
    """Three classes, one of them with a folder in it."""
    touch(tmp_path / 'pictures', 'ant/1.jpg', 'ant/2.jpg', 'bee/1.jpg', 'bee/sub/2.jpg', 'cat/1.jpg')
    rest()
    return tmp_path / 'pictures'


@pytest.fixture
def listed(monkeypatch):
    """Opens a folder; the names of the folders that were listed for it, sorted."""
    names, scan = [], os.scandir
    monkeypatch.setattr(os, 'scandir', lambda path: [names.append(Path(path).name), scan(path)][1])

    def listed_for(folder):
        names.clear()
        open_index(folder)
        return sorted(names)

    return listed_for


def assert_as_torchvision(folder):
    ours, theirs = open_index(folder), ImageFolder(str(folder))
    assert list(ours) == theirs.samples
    assert (ours.classes, ours.labels().tolist(), len(ours)) == (theirs.classes, theirs.targets, len(theirs))
    assert ours[-1] == theirs.samples[-1]


def test_samples_are_torchvisions(tmp_path, listed, monkeypatch):
    touch(tmp_path / 'pictures', *NAMES)
    touch(tmp_path / 'other', 'g.jpg', 'in/h.png')
    links = {'linked': 'other', 'ant/l.png': 'other/g.jpg', 'ant/broken.png': 'no', 'ant/o.png': 'pictures/ant/o.png'}
    for link, target in links.items():
        (tmp_path / 'pictures' / link).symlink_to(tmp_path / target)
    rest()
    monkeypatch.chdir(tmp_path)
    for folder in tmp_path / 'pictures', Path('pictures'):  # of relative paths, from the cache
        assert_as_torchvision(folder)
        assert not {'_c', 'caf\u00e9', 'w s'} & set(listed(folder))


def set_back(folder):
    noted = (folder / 'ant').stat()
    touch(folder, 'ant/3.jpg')
    os.utime(folder / 'ant', ns=(noted.st_atime_ns, noted.st_mtime_ns))


CHANGES = {
    'none': (lambda folder: None, []),
    'added, time set back': (set_back, ['ant']),
    'deeper': (lambda folder: touch(folder, 'bee/sub/3.jpg'), []),
    'class': (lambda folder: touch(folder, 'bat/3.jpg'), ['bat']),
    'class gone': (lambda folder: (folder / 'ant').rename(folder.parent / 'ant'), []),
}


@pytest.mark.parametrize('change, again', CHANGES.values(), ids=CHANGES)
def test_changed_classes_alone_are_listed_again(pictures, cache, listed, change, again):
    assert listed(pictures) == ALL
    (kept,) = (file.stat().st_ino for file in cache.iterdir())
    change(pictures)
    rest()
    assert listed(pictures) == sorted([*again, *ALWAYS])
    assert_as_torchvision(pictures)
    assert listed(pictures) == ALWAYS
    (now,) = (file.stat().st_ino for file in cache.iterdir())
    assert (now == kept) == (not again and (pictures / 'ant').exists())


def test_damaged_cache_and_that_of_something_else_are_not_believed(pictures, tmp_path, listed, monkeypatch):
    touch(tmp_path / 'others', 'ant/other.jpg')
    assert len(open_index(tmp_path / 'others')) == 1
    expected, file, other = list(open_index(pictures)), cache_file(pictures), cache_file(tmp_path / 'others')
    whole, random = file.read_bytes(), np.random.default_rng(0)
    contents = [b'', whole[:100], whole[:-30], other.read_bytes()]
    for place in random.integers(len(whole), size=100):
        contents.append(whole[:place] + bytes([whole[place] ^ 1 << random.integers(8)]) + whole[place + 1 :])
    for content in contents:
        file.write_bytes(content)
        assert list(open_index(pictures)) == expected
    assert read_cache(other, pictures) == {}
    monkeypatch.setattr(folder_index, 'FORMAT', b'another')  # as when other extensions count as pictures
    assert listed(pictures) == ALL


NOT_KEPT = {
    'few pictures': lambda patch, folder: patch.setattr(folder_index, 'SMALLEST', 6),
    'full disk': lambda patch, folder: patch.setattr(np, 'savez', Mock(side_effect=OSError(28, 'full'))),
}


@pytest.mark.parametrize('spoil', NOT_KEPT.values(), ids=NOT_KEPT)
def test_all_is_listed_again_where_no_cache_is_kept(pictures, cache, listed, monkeypatch, spoil):
    spoil(monkeypatch, pictures)
    assert listed(pictures) == listed(pictures) == ALL
    assert_as_torchvision(pictures)
    assert not [path for path in cache.glob('*') if path.is_file()]


def test_folder_changed_just_now_is_listed_again(pictures, tmp_path, listed, monkeypatch):
    """Its cache is in the home folder, as the environment names a relative one, which does not count."""
    monkeypatch.setattr(folder_index, 'UNSETTLED_SECONDS', 1000)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
    assert listed(pictures) == listed(pictures) == ALL
    monkeypatch.setattr(folder_index, 'UNSETTLED_SECONDS', 0)
    open_index(pictures)
    assert list((tmp_path / 'home' / '.cache' / 'elastic').iterdir()) == [cache_file(pictures)]


def test_empty_and_unreadable_folders_are_named(pictures, cache):
    touch(pictures, *(f'none{number}/notes.txt' for number in range(9)))
    with pytest.raises(UserError, match=r'no picture in class none0, .*, none4 and 4 more \(looked for \.jpg'):
        open_index(pictures)
    with pytest.raises(UserError, match='none8: holds no class folder'):
        open_index(pictures / 'none8')
    with pytest.raises(UserError, match='cannot read folder .*gone: No such file'):
        open_index(pictures / 'gone')  # as one without permission
    assert not cache.exists()
