"""Files broken at random: each is taken or ends in one line, without any other error, a warning, or code that runs.

A few dozen of each kind in every run of the tests, hundreds in `make test-all`, which prints how many were refused;
FUZZ_SEED=7 in the environment breaks them otherwise.
"""

import copy
import io
import json
import os
import random
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import TinyNet, stop_at
from tests.pictures import annotations, write_json
from tests.runs import LAST
from tests.test_checkpoint import Hostile, released, trained
from utils import checkpoint, reporting
from utils.coco import read_table
from utils.errors import UserError, exit_cleanly
from utils.image_folder import open_image, open_pixels
from utils.interrupt import Stopped
from utils.restore import load_optimizer, resume
from utils.voc import open_mask, size_of

SEED = int(os.environ.get('FUZZ_SEED', 0))


def few_or_many(few, many):
    """How many a test breaks."""
    return pytest.mark.parametrize('count', [few, pytest.param(many, marks=pytest.mark.slow)])


def broken(content, chance):
    """The bytes cut off somewhere, or with one to eight of them changed, or a stretch of them gone or zero."""
    way, content = chance.choice(['cut', 'bits', 'bits', 'bytes', 'bytes', 'gone', 'zero']), bytearray(content)
    place, length = chance.randrange(len(content)), chance.randint(1, 64)
    if way in ('bits', 'bytes'):
        reach = chance.choice([200, 2000, len(content)])  # heads are where most can go wrong
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(min(reach, len(content)))
            content[place] = content[place] ^ 1 << chance.randrange(8) if way == 'bits' else chance.randrange(256)
        return bytes(content)
    parts = {'cut': b'', 'gone': content[place + length :], 'zero': bytes(length) + content[place + length :]}
    return bytes(content[:place] + parts[way])


def outcomes(name, attempts, capfd):
    """Carry out each attempt and count how they end; nothing may be printed or warned of."""
    counts = Counter()
    for number, attempt in enumerate(attempts):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            try:
                attempt()
                counts['taken'] += 1
            except UserError as error:
                assert 'frame #' not in str(error)
                counts['refused'] += 1
            except BaseException as error:
                raise AssertionError(f'{name} {number} of FUZZ_SEED={SEED}: {error!r}') from error
        told = [str(found.message) for found in warned if found.category is not ResourceWarning]  # hidden by default
        told += capfd.readouterr().err.splitlines()
        assert not told, f'{name} {number} of FUZZ_SEED={SEED}: {told}'
    with capfd.disabled():
        print(f'\n{name}: {dict(counts)}')
    return counts


def files_of(contents, tmp_path, chance, count, use):
    """Attempts that each write one of the contents, broken, and use it; (name, content) pairs."""

    def attempt():
        name, content = chance.choice(contents)
        (tmp_path / name).write_bytes(broken(content, chance))
        use(tmp_path / name)

    return [attempt] * count


# Checkpoints


@few_or_many(60, 1000)
@pytest.mark.parametrize('zipped', [False, True])
def test_broken_checkpoints(tmp_path, capfd, count, zipped):
    contents = []
    for extra in {}, {}, {}, {'extra': Hostile(tmp_path / 'executed')}:
        file = io.BytesIO()
        torch.save({**released(*trained()), **extra}, file, _use_new_zipfile_serialization=zipped)
        contents.append(('file', file.getvalue()))
    model, optimizer = trained()

    def use(path):
        found = checkpoint.read(path)
        resume(model, found)
        load_optimizer(model, optimizer, found)

    chance = random.Random(f'{SEED} {zipped}')
    counts = outcomes(f'checkpoints, zipped: {zipped}', files_of(contents, tmp_path, chance, count, use), capfd)
    assert counts['refused'] > count // 4
    assert not (tmp_path / 'executed').exists()


def odd_values(chance):
    """Values that are not what stood there."""
    ones = torch.ones(chance.choice([(), (0,), (1,), (5,), (8, 3, 3, 3)]))
    return [
        *(None, True, -1, 0, 1, 3, 10**6, 10**18, 10**300, 10**400, 0.5, -0.0, 1e308, float('nan'), float('inf'), 1j),
        *('', 'text', b'bytes', [], {}, (), [None], [[]], {'a': 1}, {0: 'x'}, {'step': 1}, {1, 2}, torch.float32),
        *(ones, ones.long(), ones.bool(), ones.half(), ones.double(), ones * torch.nan, ones / 0, -1e30 * ones),
        *(ones.to('meta'), ones.to(torch.complex64), ones.to_sparse(), ones.to(torch.float8_e5m2)),
        *(ones.flatten()[:1].expand(2**40) if ones.numel() else ones, torch.nn.Parameter(ones)),
        *(np.float64('nan'), np.int64(2), np.float32(1), np.bool_(True), torch.device('cpu'), torch.Size([3])),
    ]


def changed(tree, chance, values):
    """A copy of nested dicts and lists of which one place, at any depth, has another value, is gone or is new."""
    tree = copy.deepcopy(tree)
    place = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return tree
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.8:
            place = place[key]
            continue
        if chance.random() < 0.15:
            del place[key]
        elif isinstance(place, dict) and chance.random() < 0.1:
            place[chance.choice(['new', 0, None, 1.5, 'module.new'])] = chance.choice(values)
        else:
            place[key] = chance.choice(values)
        return tree


@few_or_many(30, 300)
def test_values_of_wrong_kinds(classify, tmp_path, capfd, monkeypatch, count):
    """Through classify.py, which goes on from a file saved inside an epoch; without what takes long."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 66)
        classify('--output', tmp_path, '--epochs', 2)
    content = torch.load(tmp_path / LAST, weights_only=True)
    statistics = {name: value for name, value in TinyNet().state_dict().items() if 'running' in name or 'num_b' in name}
    content['processes'] = [{'statistics': statistics, 'metrics': content['position']['metrics']}]
    monkeypatch.setattr(reporting, 'write_figure', lambda *_, **__: None)
    monkeypatch.setattr(reporting, 'git_commit', lambda: None)
    chance = random.Random(f'{SEED} values')

    def attempt():
        once = changed(content, chance, odd_values(chance))
        torch.save(once, tmp_path / LAST)
        (tmp_path / 'log.jsonl').unlink(missing_ok=True)
        if chance.random() < 0.2:
            classify('--evaluate', '--resume', tmp_path / LAST)
        else:
            classify('--output', tmp_path, '--epochs', 2, '--auto-resume')

    counts = outcomes('values of wrong kinds', [attempt] * count, capfd)
    assert counts['refused'] > count // 2
    assert counts['taken']


# Pictures and annotations


def pictures():
    """(name, bytes) of a picture of noise in many formats."""
    noise = np.random.RandomState(0).randint(0, 256, (24, 31, 4)).astype(np.uint8)
    colours = Image.fromarray(noise[..., :3])
    palette = colours.quantize(16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a description'
    made = {
        'a.jpg': (colours, {'exif': exif}),
        'grey.jpg': (colours.convert('L'), {'progressive': True}),
        'cmyk.jpg': (colours.convert('CMYK'), {}),
        'a.png': (colours, {}),
        'alpha.png': (Image.fromarray(noise), {'exif': exif}),
        'palette.png': (palette, {'transparency': bytes(range(16))}),
        'mask.png': (Image.fromarray(noise[..., 0] % 21), {}),
        'a.tif': (colours, {}),
        'lzw.tif': (colours, {'compression': 'tiff_lzw'}),
        'deflate.tif': (colours, {'compression': 'tiff_adobe_deflate'}),
        'jpeg.tif': (colours, {'compression': 'jpeg'}),
        'a.bmp': (colours, {}),
        'palette.bmp': (palette, {}),
        'a.ppm': (colours, {}),
        'a.webp': (colours, {}),
        'a.gif': (palette, {'transparency': 3}),
    }
    files = []
    for name, (picture, options) in made.items():
        file = io.BytesIO()
        picture.save(file, format=Image.registered_extensions()[f'.{name.split(".")[1]}'], **options)
        files.append((name, file.getvalue()))
    return files


@few_or_many(100, 1200)
def test_broken_pictures(tmp_path, capfd, count):
    chance = random.Random(f'{SEED} pictures')

    def use(path):
        reader = chance.choice([open_image, open_pixels, open_mask, size_of])
        reader(path if reader in (open_mask, size_of) else str(path))

    counts = outcomes('pictures', files_of(pictures(), tmp_path, chance, count, use), capfd)
    assert counts['refused'] > count // 4
    assert counts['taken']


JSON_VALUES = [None, True, -1, 0, 1, 2.5, 10**400, float('nan'), float('inf'), '', 'x', '..', [], {}, [0], {'id': 1}]


@few_or_many(100, 300)
def test_broken_annotations(tmp_path, capfd, count):
    chance, text = random.Random(f'{SEED} json'), [('a.json', json.dumps(annotations()).encode())]

    def change():
        read_table(write_json(tmp_path / 'a.json', changed(annotations(), chance, JSON_VALUES)))

    attempts = [*files_of(text, tmp_path, chance, count, read_table), *[change] * count]
    counts = outcomes('annotation files', attempts, capfd)
    assert counts['refused'] > count // 2


def test_line_is_one_and_without_warnings(tmp_path, capfd):
    """As a user sees it, with Python's own way of showing warnings."""
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8))
    noise.save(tmp_path / 'a.tif')
    (tmp_path / 'a.tif').write_bytes((tmp_path / 'a.tif').read_bytes()[:-40])
    with warnings.catch_warnings():
        warnings.simplefilter('default')
        with pytest.raises(SystemExit):
            exit_cleanly(lambda: open_image(str(tmp_path / 'a.tif')))
    assert len(capfd.readouterr().err.splitlines()) == 1
