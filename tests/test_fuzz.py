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

from data.coco import read_table
from data.image_folder import open_image, open_pixels
from data.voc import open_mask, size_of
from models.norm import statistics
from tests.checkpoints import Hostile, released, trained
from tests.conftest import TinyNet, stop_at
from tests.pictures import write_json
from tests.runs import LAST
from utils import checkpoint, logger
from utils.checkpoint import load_optimizer, resume
from utils.errors import UserError
from utils.signals import Stopped

SEED = int(os.environ.get('FUZZ_SEED', 0))


def few_or_many(few, many):
    """How many a test breaks."""
    return pytest.mark.parametrize('count', [few, pytest.param(many, marks=pytest.mark.slow)])


def broken(content, chance):
    """The bytes cut off somewhere, or with one to eight of them changed, or a stretch of them gone or zero."""
    way, content = chance.choice(['cut', 'gone', 'zero', 'bits', 'bits', 'bytes', 'bytes']), bytearray(content)
    place, length = chance.randrange(len(content)), chance.randint(1, 64)
    reach = chance.choice([200, 2000, len(content)])  # heads are where most can go wrong
    if way == 'cut':
        del content[place:]
    elif way in ('gone', 'zero'):
        content[place : place + length] = bytes(length * (way == 'zero'))
    else:
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(min(reach, len(content)))
            content[place] = content[place] ^ 1 << chance.randrange(8) if way == 'bits' else chance.randrange(256)
    return bytes(content)


def write_broken(contents, folder, chance):
    """The path in the folder of one of the contents, (name, bytes) pairs, broken."""
    name, content = chance.choice(contents)
    (folder / name).write_bytes(broken(content, chance))
    return folder / name


def outcomes(name, count, attempt, capfd):
    """Make the attempt so often and count how it ends; nothing may be printed or warned of."""
    counts = Counter()
    for number in range(count):
        told = f'{name} {number} of FUZZ_SEED={SEED}'
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            try:
                attempt()
                counts['taken'] += 1
            except UserError as error:
                assert 'frame #' not in str(error), told
                counts['refused'] += 1
            except BaseException as error:
                raise AssertionError(f'{told}: {error!r}') from error
        shown = [str(found.message) for found in warned if found.category is not ResourceWarning]  # hidden by default
        assert shown + capfd.readouterr().err.splitlines() == [], told
    with capfd.disabled():
        print(f'\n{name}: {dict(counts)}')
    return counts


@few_or_many(60, 1000)
@pytest.mark.parametrize('zipped', [False, True])
def test_broken_checkpoints(tmp_path, capfd, count, zipped):
    chance, contents = random.Random(f'{SEED} {zipped}'), []
    for extra in {}, {}, {}, {'extra': Hostile(tmp_path / 'executed')}:
        file = io.BytesIO()
        torch.save({**released(*trained()), **extra}, file, _use_new_zipfile_serialization=zipped)
        contents.append(('file', file.getvalue()))
    model, optimizer = trained()

    def attempt():
        found = checkpoint.read(write_broken(contents, tmp_path, chance))
        resume(model, found)
        load_optimizer(model, optimizer, found)

    counts = outcomes(f'checkpoints, zipped: {zipped}', count, attempt, capfd)
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
    tree = place = copy.deepcopy(tree)
    while place:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.8:
            place = place[key]
            continue
        if chance.random() < 0.15:
            del place[key]
        elif isinstance(place, dict) and chance.random() < 0.1:
            place[chance.choice(['new', 0, None, 1.5, 'module.new'])] = chance.choice(values)
        else:
            place[key] = chance.choice(values)
        break
    return tree


@few_or_many(30, 300)
def test_values_of_wrong_kinds(classify, tmp_path, capfd, monkeypatch, count):
    """Through classify.py, which goes on from a file saved inside an epoch; without what takes long."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 66)
        classify('--output', tmp_path, '--epochs', 2)
    content = torch.load(tmp_path / LAST, weights_only=True)
    content['processes'] = [{'statistics': statistics(TinyNet()), 'metrics': content['position']['metrics']}]
    monkeypatch.setattr(logger, 'write_figure', lambda *_, **__: None)
    monkeypatch.setattr(logger, 'git_commit', lambda: None)
    chance = random.Random(f'{SEED} values')

    def attempt():
        once = changed(content, chance, odd_values(chance))
        torch.save(once, tmp_path / LAST)
        (tmp_path / 'log.jsonl').unlink(missing_ok=True)
        if chance.random() < 0.2:
            classify('--evaluate', '--resume', tmp_path / LAST)
        else:
            classify('--output', tmp_path, '--epochs', 2, '--auto-resume')

    counts = outcomes('values of wrong kinds', count, attempt, capfd)
    assert counts['refused'] > count // 2
    assert counts['taken']


def pictures():
    """(name, bytes) of a picture of noise, and of a mask, in many formats."""
    noise = np.random.RandomState(0).randint(0, 256, (24, 31, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a description'
    made = [
        *(('JPEG', 'RGB', {'exif': exif}), ('JPEG', 'L', {'progressive': True}), ('JPEG', 'CMYK', {})),
        *(('PNG', 'RGB', {}), ('PNG', 'RGBA', {'exif': exif}), ('PNG', 'P', {'transparency': bytes(range(16))})),
        *(('TIFF', 'RGB', {'compression': way}) for way in (None, 'tiff_lzw', 'tiff_adobe_deflate', 'jpeg')),
        *(('BMP', 'RGB', {}), ('BMP', 'P', {}), ('PPM', 'RGB', {}), ('WEBP', 'RGB', {})),
        *(('GIF', 'P', {'transparency': 3}), ('PNG', 'mask', {})),
    ]
    files = []
    for form, mode, options in made:
        picture = Image.fromarray(noise[..., 0] % 21) if mode == 'mask' else Image.fromarray(noise).convert(mode)
        file = io.BytesIO()
        picture.save(file, form, **options)
        files.append((f'a.{form.lower()}', file.getvalue()))
    return files


@few_or_many(100, 1200)
def test_broken_pictures(tmp_path, capfd, count):
    chance, contents = random.Random(f'{SEED} pictures'), pictures()

    def attempt():
        path = write_broken(contents, tmp_path, chance)
        reader = chance.choice([open_image, open_pixels, open_mask, size_of])
        reader(path if reader in (open_mask, size_of) else str(path))

    counts = outcomes('pictures', count, attempt, capfd)
    assert counts['refused'] > count // 4
    assert counts['taken']


JSON_VALUES = [None, True, -1, 0, 1, 2.5, 10**400, float('nan'), float('inf'), '', 'x', '..', [], {}, [0], {'id': 1}]


@few_or_many(100, 300)
def test_broken_annotations(coco, tmp_path, capfd, count):
    content = (coco / 'annotations' / 'instances_val2014.json').read_bytes()
    chance = random.Random(f'{SEED} json')

    def attempt():
        if chance.random() < 0.5:
            read_table(write_broken([('a.json', content)], tmp_path, chance))
        else:
            read_table(write_json(tmp_path / 'a.json', changed(json.loads(content), chance, JSON_VALUES)))

    counts = outcomes('annotation files', 2 * count, attempt, capfd)
    assert counts['refused'] > count // 2
    assert counts['taken']
