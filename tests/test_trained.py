"""utils/trained.py: what net a file is of, as it says or as its tensors tell; hubconf.py, through torch.hub itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import hubconf
import models
from tests.conftest import TinyNet, TinySegmenter
from tests.nets import on_meta
from utils.checkpoint import Checkpoint
from utils.class_names import default_names, readable_names
from utils.errors import UserError
from utils.trained import identify, load_net
from utils.voc import CLASSES

ROOT = str(Path(hubconf.__file__).parent)
NAMES = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu']
SAID = {'task': 'imagenet', 'arch': 'tiny', 'classes': NAMES}
REGISTRY = models.classifiers | {f'segmenter_{name}': build for name, build in models.segmenters.items()}


def test_classes_without_names_and_imagenets_folders():
    assert default_names('imagenet', 1000)[::999] == ['tench', 'toilet tissue']
    coco = default_names('coco', 80)
    assert (len(coco), len(set(coco)), coco[0], coco[11], coco[79]) == (80, 80, 'person', 'stop sign', 'toothbrush')
    assert default_names('voc', 21) == CLASSES
    assert default_names('imagenet', 80) == [f'class {place}' for place in range(80)]
    folders = [f'n{10_000_000 + 7 * place}' for place in range(1000)]
    assert readable_names('imagenet', folders) == default_names('imagenet', 1000)
    for task, others in [('coco', folders[:80]), *(('imagenet', f) for f in (folders[::-1], ['x', *folders[1:]], [])]:
        assert readable_names(task, others) == others
