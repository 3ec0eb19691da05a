"""Fixtures of the tests of the scripts: a small folder of pictures, small nets, a way to call a script."""

import io
import multiprocessing
import os
import signal
from collections import namedtuple
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import models
from data import coco, image_folder, voc
from models.elastic import TwoBranchBottleneck
from models.resnext import ResNeXt
from tests.pictures import write_coco, write_voc
from utils.errors import exit_cleanly
from utils.logger import Log


class TinyNet(nn.Module):
    """A stem, one elastic block, average pool and fc: trains in milliseconds, with batch norms and a head."""

    head_names = ('fc',)

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 4, 1, bias=False)
        self.block = TwoBranchBottleneck(8, 8, 16, 4, elastic=True)
        self.bn3 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x num_classes."""
        return self.fc(F.relu(self.bn3(self.block.branch_sum(self.conv1(x)))).mean((2, 3)))


class TinySegmenter(nn.Module):
    """A 1x1 conv on the map of a TinyNet, resized to the input; like DLA's, it carries the classifier's fc along."""

    backbone, head_names, untrained, smallest_batch = ('base',), ('score',), ('base.fc',), 2

    def __init__(self, num_classes: int = 21, checkpoint_activations: bool = False):
        super().__init__()
        self.base = TinyNet()
        self.base.fc.requires_grad_(False)
        self.score = nn.Conv2d(16, num_classes, 1)

    @staticmethod
    def from_classifier(state):
        return {f'base.{name}': value for name, value in state.items()}

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x num_classes x H x W."""
        features = F.relu(self.base.bn3(self.base.block.branch_sum(self.base.conv1(x))))
        return F.interpolate(self.score(features), x.shape[-2:], mode='bilinear')


def register(patch):
    """Put TinyNet and TinySegmenter into the registries as `tiny`."""
    patch.setitem(models.classifiers, 'tiny', TinyNet)
    patch.setitem(models.segmenters, 'tiny', TinySegmenter)


@pytest.fixture
def tiny(monkeypatch):
    register(monkeypatch)


@pytest.fixture
def small(monkeypatch):
    """Builder of a ResNeXt of seven blocks, four of them elastic, as `small` in the registry."""

    def build(num_classes: int = 6) -> ResNeXt:
        torch.manual_seed(1)
        return ResNeXt((2, 2, 2, 1), num_classes, elastic=True).eval()

    monkeypatch.setitem(models.classifiers, 'small', build)
    return build


def write_folder(folder):
    """FOLDER/{train,val}/CLASS/N.png, noise about a brightness of the class's own."""
    random = np.random.RandomState(0)
    for part, count in ('train', 6), ('val', 3):
        for label, name in enumerate(('ant', 'bee', 'cat', 'dog', 'eel', 'fox')):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.rand(40, 48, 3) * 80 + label * 30
                Image.fromarray(pixels.astype('uint8')).save(folder / part / name / f'{number}.png')
    return folder


SETS = {
    'classify': write_folder,  # 36 + 18 pictures of six classes
    'multilabel_classify': partial(write_coco, train=24, val=9),  # pictures of three classes in COCO's layout of 2014
    'segment': partial(write_voc, train_aug=[(40, 48)] * 13, val=[(30, 40), (50, 33), (30, 40)]),
}


@pytest.fixture
def folder(tmp_path):
    return SETS['classify'](tmp_path / 'pictures')


@pytest.fixture(autouse=True)
def one_thread():
    """Small nets are quicker on one thread, and tests that run side by side do not disturb each other."""
    torch.set_num_threads(1)


class Script:
    """A script called in this process with arguments that every call shares."""

    def __init__(self, script, folder, arguments=''):
        self.script, self.shared = script, [str(folder), *arguments.split()]

    def __call__(self, *arguments):
        return self.script.main(self.script.make_parser().parse_args([*self.shared, *map(str, arguments)]))

    def error(self, capsys, *arguments) -> str:
        """The single line on stderr with which a call ends."""
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            exit_cleanly(lambda: self(*arguments))
        assert end.value.code not in (0, None)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]


def small_script(name, data):
    """The script of this name with its small net on such a set: two epochs of batches of 2 x 4, segment.py's of 4."""
    if name == 'segment':
        small = '-a tiny --batch_size 4 --crop_size 33 --epochs 2 --base_lr 0.05 --workers 0 -p 2 --device cpu'
        return Script(import_module(name), '--exp=mine', f'--data {data} {small}')
    small = '-a tiny -b 8 -g 2 --epochs 2 --lr 0.05 --image-size 32 -j 0 -p 3 --device cpu'
    return Script(import_module(name), data, small)


@pytest.fixture
def classify(folder, tiny):
    return small_script('classify', folder)


@pytest.fixture
def multilabel(tiny, tmp_path):
    return small_script('multilabel_classify', SETS['multilabel_classify'](tmp_path / 'coco'))


@pytest.fixture
def segment(tiny, tmp_path):
    """segment.py, which writes into tmp_path/run."""
    script = small_script('segment', SETS['segment'](tmp_path / 'devkit'))
    script.shared += ['--output', str(tmp_path / 'run')]
    return script


@pytest.fixture
def here(monkeypatch):
    """The benchmark runs nets in this process, as if they took 3 MiB, and multiplies small matrices."""

    @contextmanager
    def apart(name, make_step, device, *args):
        step = make_step(*args)
        step.peak = 3 * 2**20
        yield step

    monkeypatch.setattr('tools.benchmark.nets.Apart', apart)
    monkeypatch.setattr('tools.benchmark.nets.MATRIX_SIDE', 64)  # else minutes where a processor has no bf16


@pytest.fixture
def undrawn(monkeypatch):
    """Curves are not drawn, which takes longer than to train small nets."""
    monkeypatch.setattr(Log, 'draw', lambda log: None)


@pytest.fixture(scope='session')
def undisturbed(tmp_path_factory):
    """By a script's name: the script, folder and lines of a run that nothing stopped; shared, so not written to."""
    Undisturbed = namedtuple('Undisturbed', 'train folder lines')

    @cache
    def run(name: str) -> Undisturbed:
        folder, printed = tmp_path_factory.mktemp(name), io.StringIO()
        script = small_script(name, SETS[name](folder / 'set'))
        script.shared += ['--train'] if name == 'segment' else ['--decay-epochs', '1']
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            register(patch)
            patch.setattr(Log, 'draw', lambda log: None)
            script('--output', folder / 'run')
        return Undisturbed(script, folder / 'run', printed.getvalue().splitlines())

    return run


def stop_at(monkeypatch, call, number=signal.SIGTERM, end=None):
    """Send this process a signal while the picture counted `call` is loaded, here or in the first worker.

    With `end`, that is called by the process that loads the picture instead.
    """
    trainer, calls, load = os.getpid(), multiprocessing.Value('i'), image_folder.pil_loader

    def counting(path):
        worker = torch.utils.data.get_worker_info()
        calls.value += worker is None or worker.id == 0
        if calls.value == call:
            end() if end else os.kill(trainer, number)
            calls.value += 1
        return load(path)

    for module in image_folder, coco, voc:
        monkeypatch.setattr(module, 'pil_loader', counting)
