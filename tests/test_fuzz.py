"""Files broken at random: each is taken or ends in one line, without any other error, a warning, or code that runs.

A hundred or so of each kind in every run of the tests, more in `make test-all`, which prints how many were refused;
FUZZ_SEED=7 in the environment breaks them otherwise.
"""

import copy
import io
import json
import os
import warnings
from collections import Counter
from functools import partial
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from data.coco import read_annotations
from data.image_folder import decode_image, pil_loader
from data.voc import open_mask, size_of
from models.norm import bn_buffers
from tests.checkpoints import Hostile, released, trained
from tests.pictures import annotations
from utils import checkpoint
from utils.checkpoint import CheckpointMeta, head_mismatch, load_optimizer, resume
from utils.errors import UserError

SEED = int(os.environ.get('FUZZ_SEED', 0))
JSON_VALUES = [None, True, -1, 0, 1, 2.5, 10**400, float('nan'), float('inf'), '', 'x', '..', [], {}, [0], {'id': 1}]


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
    key = chance.choice(list(place))
    while isinstance(place[key], dict | list) and place[key] and chance.random() < 0.8:
        place = place[key]
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
    if chance.random() < 0.15:
        del place[key]
    elif isinstance(place, dict) and chance.random() < 0.1:
        place[chance.choice(['new', 0, None, 1.5, 'module.new'])] = chance.choice(values)
    else:
        place[key] = chance.choice(values)
    return tree


def checkpoints(folder, zipped):
    """The bytes of some, one of which would make a folder if it were unpickled naively."""
    for extra in {}, {}, {}, {'extra': Hostile(folder / 'executed')}:
        file = io.BytesIO()
        torch.save({**released(*trained()), **extra}, file, _use_new_zipfile_serialization=zipped)
        yield file.getvalue()


def checkpoint_contents(folder):
    """What is saved inside an epoch of a job of one process."""
    model, optimizer = trained()
    metrics, said = {'loss': {'sum': 1.5, 'count': 4}}, {'task': 'imagenet', 'classes': list('abcde'), 'seed': 0}
    position = {'step': 4, 'plan': {'samples': 36, 'micro_batch': 4, 'accumulate': 2}, 'metrics': metrics}
    processes = [{'statistics': bn_buffers(model), 'metrics': metrics}]
    yield released(model, optimizer) | said | {'position': position, 'processes': processes, 'scaler': {}}


def resumed(path, chance):
    model, optimizer = trained()
    found = checkpoint.read(path)
    if not head_mismatch(found, model, CheckpointMeta('imagenet', 'tiny', list('abcde'))):
        resume(model, found)
        load_optimizer(model, optimizer, found)


def pictures(folder):
    """The bytes of a picture of noise, which in grey is a mask too, in many formats."""
    noise, exif = np.random.RandomState(0).randint(0, 21, (24, 31, 3)).astype(np.uint8), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a description'
    for form, mode, options in [
        *(('JPEG', 'RGB', {'exif': exif}), ('JPEG', 'L', {'progressive': True}), ('JPEG', 'CMYK', {})),
        *(('PNG', 'RGB', {}), ('PNG', 'RGBA', {'exif': exif}), ('PNG', 'P', {'transparency': bytes(range(16))})),
        *(('TIFF', 'RGB', {'compression': way}) for way in (None, 'tiff_lzw', 'tiff_adobe_deflate', 'jpeg')),
        *(('BMP', 'RGB', {}), ('BMP', 'P', {}), ('PPM', 'RGB', {}), ('WEBP', 'RGB', {})),
        *(('GIF', 'P', {'transparency': 3}), ('PNG', 'L', {})),
    ]:
        file = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(file, form, **options)
        yield file.getvalue()


KINDS = {  # contents of whole files, as bytes or to be given other values, and how one is read
    'checkpoints': (partial(checkpoints, zipped=True), resumed),
    'checkpoints before PyTorch 1.6': (partial(checkpoints, zipped=False), resumed),
    'values of checkpoints': (checkpoint_contents, resumed),
    'pictures': (pictures, lambda path, chance: chance.choice([pil_loader, decode_image, open_mask, size_of])(path)),
    'annotation files': (
        lambda folder: [json.dumps(annotations()).encode(), annotations()],
        lambda path, chance: read_annotations(path),
    ),
}


@pytest.mark.parametrize('times', [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', KINDS)
def test_broken_files(tmp_path, capfd, kind, times):
    (contents, read), chance, path = KINDS[kind], Random(f'{SEED} {kind}'), tmp_path / 'file'
    whole, counts = list(contents(tmp_path)), Counter()
    for number in range(150 * times):
        content, told = chance.choice(whole), f'{kind} {number} of FUZZ_SEED={SEED}'
        if isinstance(content, bytes):
            path.write_bytes(broken(content, chance))
        elif 'state_dict' in content:
            torch.save(changed(content, chance, odd_values(chance)), path)
        else:
            path.write_text(json.dumps(changed(content, chance, JSON_VALUES)))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            warnings.simplefilter('ignore', ResourceWarning)  # hidden by default
            try:
                read(path, chance)
                counts['taken'] += 1
            except UserError as error:
                assert 'frame #' not in str(error), told
                counts['refused'] += 1
            except BaseException as error:
                raise AssertionError(f'{told}: {error!r}') from error
        assert [str(found.message) for found in warned] + capfd.readouterr().err.splitlines() == [], told
    with capfd.disabled():
        print(f'\n{kind}: {dict(counts)}')
    assert counts['refused'] > 37 * times
    assert counts['taken']
    assert not (tmp_path / 'executed').exists()
