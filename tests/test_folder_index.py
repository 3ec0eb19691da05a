"""data/folder_index.py: torchvision's samples, what is listed again and when, caches that are no use."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from data import folder_index
from data.folder_index import cache_file, open_index, read_cache
from utils.errors import UserError

NAMES = [
    *('ant/b.jpg', 'ant/a.JPEG', 'ant/B.PNG', 'ant/.jpg', 'ant/notes.txt', 'ant/jpg', 'ant/x.jpg.part', 'ant/10.webp'),
    *('ant/9.tiff', 'ant/sub/c.png', 'ant/sub/deep/er/d.ppm', 'ant/sub/deep/notes.md', 'ant/sub z/e.bmp', 'list.txt'),
    *('ant/sub.jpg/f.Jpg', 'ant/\u00e9t\u00e9.jpg', 'Bee/z.pgm', 'Bee/none/README', '_c/one.tif', 'stray.jpg'),
    *('caf\u00e9/\u732b.jpg', 'caf\u00e9/a\nb.jpg', 'white space/a b.jpg', f'Bee/{os.fsdecode(bytes([255]))}.jpg'),
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
    folder = tmp_path / 'pictures'
    touch(folder, *NAMES)
    touch(tmp_path / 'other', 'g.jpg', 'in/h.png')
    for link, target in ('linked', 'other'), ('ant/linked.png', 'other/g.jpg'), ('ant/broken.png', 'nowhere'):
        (folder / link).symlink_to(tmp_path / target)
    (folder / 'Bee' / 'circle.png').symlink_to('circle.png')
    rest()
    assert_as_torchvision(folder)
    assert not {'_c', 'caf\u00e9', 'white space'} & set(listed(folder))
    monkeypatch.chdir(tmp_path)
    assert_as_torchvision(Path('pictures'))  # of relative paths, from the cache


def swap(one, other):
    one.rename(one.with_name('third'))
    other.rename(one)
    one.with_name('third').rename(other)


def set_back(folder):
    noted = (folder / 'ant').stat()
    touch(folder, 'ant/3.jpg')
    os.utime(folder / 'ant', ns=(noted.st_atime_ns, noted.st_mtime_ns))


CHANGES = {
    'none': (lambda folder: None, []),
    'added': (lambda folder: touch(folder, 'ant/3.jpg'), ['ant']),
    'added, time set back': (set_back, ['ant']),
    'removed': (lambda folder: (folder / 'ant' / '1.jpg').unlink(), ['ant']),
    'moved': (lambda folder: (folder / 'ant' / '1.jpg').rename(folder / 'cat' / '9.jpg'), ['ant', 'cat']),
    'deeper': (lambda folder: touch(folder, 'bee/sub/3.jpg'), []),
    'class': (lambda folder: touch(folder, 'bat/3.jpg'), ['bat']),
    'class gone': (lambda folder: (folder / 'ant').rename(folder.parent / 'ant'), []),
    'class swapped': (lambda folder: swap(folder / 'ant', folder / 'cat'), ['ant', 'cat']),
}


def test_class_that_got_a_folder_is_listed_from_then_on(pictures, listed):
    assert listed(pictures) == ALL
    touch(pictures, 'cat/new/3.jpg')
    rest()
    assert_as_torchvision(pictures)
    assert listed(pictures) == listed(pictures) == sorted([*ALWAYS, 'cat', 'new'])


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


@pytest.mark.parametrize('name, value', [('UNSETTLED_SECONDS', 1000), ('SMALLEST', 6)])
def test_folder_changed_just_now_or_small_is_listed_again(pictures, cache, listed, monkeypatch, name, value):
    monkeypatch.setattr(folder_index, name, value)
    assert listed(pictures) == listed(pictures) == ALL
    assert not cache.exists()


def test_damaged_cache_and_that_of_something_else_are_not_believed(pictures, tmp_path, cache, listed, monkeypatch):
    touch(tmp_path / 'others', 'ant/other.jpg')
    assert len(open_index(tmp_path / 'others')) == 1
    expected, file = list(open_index(pictures)), cache_file(pictures)
    assert len(list(cache.iterdir())) == 2
    whole, random = file.read_bytes(), np.random.default_rng(0)
    np.savez(tmp_path / 'other.npz', format=np.zeros(3))
    contents = [b'', b'text', whole[:100], whole[:-30], (tmp_path / 'other.npz').read_bytes()]
    contents.append(cache_file(tmp_path / 'others').read_bytes())
    for place in random.integers(len(whole), size=100):
        contents.append(whole[:place] + bytes([whole[place] ^ 1 << random.integers(8)]) + whole[place + 1 :])
    for content in contents:
        file.write_bytes(content)
        assert list(open_index(pictures)) == expected
    assert read_cache(cache_file(tmp_path / 'others'), pictures) == {}
    monkeypatch.setattr(folder_index, 'FORMAT', b'another')  # as when other extensions count as pictures
    assert listed(pictures) == ALL


@pytest.mark.parametrize('place', ['file', 'folder in its place', 'full disk', '/proc/nowhere', 'relative'])
def test_cache_that_cannot_be_written(pictures, tmp_path, cache, monkeypatch, place):
    def full(file, **_):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    if place == 'folder in its place':
        (cache_file(pictures) / 'x').mkdir(parents=True)
    elif place == 'full disk':
        monkeypatch.setattr(np, 'savez', full)
    else:
        touch(tmp_path, 'file')
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / place) if place == 'file' else place)
    for _ in range(2):
        assert_as_torchvision(pictures)
    assert not [path for path in cache.glob('*') if path.is_file()]
    assert (tmp_path / 'home' / '.cache' / 'elastic').exists() == (place == 'relative')


def test_empty_and_unreadable_folders_are_named(pictures, cache):
    for number in range(9):
        touch(pictures, f'none{number}/notes.txt')
    with pytest.raises(UserError, match=r'no picture in class none0, .*, none4 and 4 more \(looked for \.jpg'):
        open_index(pictures)
    with pytest.raises(UserError, match='none8: holds no class folder'):
        open_index(pictures / 'none8')
    with pytest.raises(UserError, match='cannot read folder .*gone: No such file'):
        open_index(pictures / 'gone')  # as one without permission
    assert not cache.exists()
