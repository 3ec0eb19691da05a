"""Imported weights: outputs against torchvision's and timm's nets, what does not fit, how elastic nets begin."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

import models
from models.dla import DLA
from models.norm import batch_norms
from tests import nets
from tests.conftest import Script
from tests.reference import load_weights
from tools import import_weights
from tools.branches import joined
from tools.import_weights import SOURCES
from utils import checkpoint
from utils.checkpoint import Identity, load_for_evaluation
from utils.errors import UserError

CLASSES = [str(n) for n in range(1000)]
RESNEXT = 'torchvision/resnext50_32x4d'
UNUSED = {
    'timm/dla60x': ['level3.project', 'level4.tree1.project', 'level4.project'],
    'timm/dla102x': [
        *('level3.tree1.project', 'level3.project'),
        *('level4.tree1.tree1.project', 'level4.tree1.project', 'level4.project'),
    ],
}


def on_meta(source: str) -> nn.Module:
    """The library's net without memory for its weights."""
    library, name = source.split('/')
    with torch.device('meta'):
        return torchvision.models.get_model(name) if library == 'torchvision' else timm.create_model(name)


def library_net(source: str) -> nn.Module:
    """The library's net with random weights and running statistics, and counts of 7 batches."""
    net = load_weights(on_meta(source))
    for norm in batch_norms(net):
        norm.num_batches_tracked.fill_(7)
    return net.eval()


def library_state(source: str) -> dict[str, torch.Tensor]:
    """Its state dict, to be changed at will."""
    return dict(library_net(source).state_dict())


class Importer:
    """The command on a state dict of `source`, in a folder of its own."""

    def __init__(self, folder: Path):
        self.out = folder / 'out.pth.tar'
        self.weights = folder / 'weights.pth'

    def script(self, source, state) -> Script:
        torch.save(state, self.weights)
        return Script(import_weights, source, f'{self.weights} {self.out}')

    def __call__(self, source, state, *arguments) -> checkpoint.Checkpoint:
        self.script(source, state)(*arguments)
        return checkpoint.read(self.out)

    def error(self, capsys, source, state, *arguments) -> str:
        """Its one line; nothing may be written."""
        line = self.script(source, state).error(capsys, *arguments)
        assert list(self.out.parent.iterdir()) == [self.weights]
        return line


@pytest.fixture
def importer(tmp_path):
    """An Importer whose files, of 200 MB, go with the test."""
    folder = tmp_path / 'import'
    folder.mkdir()
    yield Importer(folder)
    shutil.rmtree(folder)


def loaded(found: checkpoint.Checkpoint, arch: str) -> nn.Module:
    """The net as classify.py --evaluate loads it."""
    net = nets.on_meta(arch).to_empty(device='cpu')
    load_for_evaluation(net, found, Identity('imagenet', arch, CLASSES))
    return net.eval()


def assert_same_outputs(net: nn.Module, other: nn.Module) -> None:
    """In float64, in which no wrong tensor hides in rounding, and with odd maps, which the libraries' DLA refuse."""
    images = nets.noise(2, 3, 64, 64 if isinstance(net, DLA) else 75, dtype=torch.float64)
    with torch.inference_mode():
        outputs, expected = net.double()(images), other.double()(images)
    one, two = expected
    assert (one - two).abs().max() > 1e-3 * expected.abs().max(), 'what does not depend on the image proves nothing'
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize('source', SOURCES)
def test_names_and_shapes_are_the_librarys(source):
    base = nets.on_meta(SOURCES[source].arch)
    whole = import_weights.translated(on_meta(source).state_dict(), base, SOURCES[source], Path('x'))
    assert whole.keys() == joined(base).keys() - import_weights.unused(base)


QUICK = RESNEXT, 'timm/seresnext50_32x4d', 'timm/dla60x'  # DenseNet's outputs are below, under its old names


@pytest.mark.parametrize('source', [pytest.param(s, marks=[] if s in QUICK else pytest.mark.slow) for s in SOURCES])
def test_outputs_are_the_librarys(importer, capsys, source):
    theirs, arch = library_net(source), SOURCES[source].arch
    found = importer(source, theirs.state_dict())
    assert (found.task, found.arch, found.epoch, found.classes) == ('imagenet', arch, 0, None)
    net = loaded(found, arch)
    assert_same_outputs(net, theirs)
    told = capsys.readouterr().out.splitlines()[1:]
    assert told == ([f'   as initialised: {", ".join(UNUSED[source])}'] if source in UNUSED else [])
    counts = {norm.num_batches_tracked.item() for norm in batch_norms(net)}
    assert counts == ({0, 7} if source in UNUSED else {7})


def test_densenet_under_its_names_of_2017(importer):
    source = 'torchvision/densenet201'
    new = library_state(source)
    old = {
        re.sub(r'(denselayer\d+\.(?:norm|conv))([12]\.)', r'\1.\2', name): value
        for name, value in new.items()
        if not name.endswith('num_batches_tracked')
    }
    assert 'features.denseblock1.denselayer1.norm.1.running_var' in old
    assert_same_outputs(loaded(importer(source, old), 'densenet201'), library_net(source))
    importer.out.unlink()
    both = old | {'features.denseblock1.denselayer1.conv1.weight': torch.zeros(128, 64, 1, 1)}
    with pytest.raises(UserError, match='the same tensor under an old and a new name'):
        importer(source, both)


def misfit(state):
    state['layer2.0.conv2.weight'] = state['layer2.0.conv2.weight'][:, :4]
    state['layer1.1.bn1.weight'] = torch.tensor(1.0)
    state['stranger'] = state.pop('layer3.2.se.fc1.bias')
    del state['layer4.0.conv1.weight']


SE = 'timm/seresnext50_32x4d'
ERRORS = [  # whose state, changed how, given as whose, and what is told, in the library's names
    (
        *(SE, misfit, SE),
        'missing: layer3.2.se.fc1.bias, layer4.0.conv1.weight; unexpected: stranger; of another shape: '
        'layer1.1.bn1.weight () instead of (128,), layer2.0.conv2.weight (256, 4, 3, 3) instead of (256, 8, 3, 3)',
    ),
    (RESNEXT, lambda state: state.pop('bn1.num_batches_tracked'), RESNEXT, 'missing: bn1.num_batches_tracked'),
    (RESNEXT, lambda state: state['fc.bias'].fill_(float('nan')), RESNEXT, 'fc.bias is not finite'),
    (SE, lambda state: state, 'timm/resnext50_32x4d', 'unexpected: layer1.0.se.fc1.weight'),
]


@pytest.mark.parametrize('of, change, given_as, told', ERRORS)
def test_what_does_not_fit_is_named_as_the_library_names_it(importer, capsys, of, change, given_as, told):
    state = library_state(of)
    change(state)
    assert told in importer.error(capsys, given_as, state)


def test_unknown_source_missing_file_and_existing_out(importer, capsys, tmp_path):
    assert "invalid choice: 'timm/resnet50'" in importer.script('timm/resnet50', {}).error(capsys)
    nowhere = Script(import_weights, RESNEXT, f'{tmp_path}/nowhere.pth {importer.out}')
    assert 'no checkpoint at' in nowhere.error(capsys)
    nowhere = Script(import_weights, RESNEXT, f'{tmp_path}/nowhere.safetensors {importer.out}')
    assert 'nowhere.safetensors: No such file or directory' in nowhere.error(capsys)
    importer.out.write_text('dear')
    script = importer.script(RESNEXT, {})
    assert f'{importer.out} exists; it is not written over' in script.error(capsys)
    assert importer.out.read_text() == 'dear'


DENSE_LAYERS = [f'features.denseblock1.denselayer{n}' for n in range(1, 7)]
ELASTIC = {  # whether a part of the elastic net stays as initialised, and what of the base net is left over
    RESNEXT: (
        lambda part: part in {f'layer1.{n}' for n in (3, 4, 5)} | {f'layer2.{n}' for n in (4, 5, 6, 7)},
        ['layer3.5'],
    ),
    'timm/dla60x': (lambda part: part in UNUSED['timm/dla60x'], []),
    'timm/densenet201': (
        lambda part: part not in ['features.conv0', 'features.norm0', *DENSE_LAYERS],
        [f'features.denseblock3.denselayer{n}' for n in range(41, 49)]
        + [f'features.denseblock4.denselayer{n}' for n in (31, 32)],
    ),
}


@pytest.mark.parametrize('source', ELASTIC)
def test_elastic_net_begins_with_the_blocks_that_correspond(importer, capsys, source):
    differs, left_over = ELASTIC[source]
    arch = f'{SOURCES[source].arch}_elastic'
    net = loaded(importer(source, library_state(source), '--elastic', '--seed', 3), arch)
    first, fresh, *others = capsys.readouterr().out.splitlines()
    torch.manual_seed(3)
    untouched = models.build_classifier(arch)
    parts = import_weights.parts(untouched)
    expected = [part for part in parts if differs(part)]
    assert f'{len(parts) - len(expected)} of its {len(parts)} parts from {source}' in first
    assert fresh == f'   as initialised: {", ".join(expected)}'
    assert others == [f'   not used: {", ".join(left_over)}'] * bool(left_over)
    whole, initial, theirs = joined(net), joined(untouched), library_state(source)
    fresh_names = {name for part in expected for name in whole if name.startswith(f'{part}.')}
    for name, value in whole.items():
        their_name = import_weights.renamed(name, SOURCES[source].names)
        assert torch.equal(value, initial[name] if name in fresh_names else theirs[their_name]), name


def test_unused_projections_of_a_file_and_blocks_of_another_width_are_not_taken(importer):
    source = 'timm/dla102x'
    theirs = library_state(source)
    for name in UNUSED[source]:
        width = 256 if name.startswith('level3.') else 512
        theirs[f'{name}.0.weight'] = torch.zeros(width, width // 2, 1, 1)
        theirs[f'{name}.1.bias'] = torch.ones(width)
    state = importer(source, theirs, '--elastic').state_dict
    torch.manual_seed(0)
    initial = models.dla102x_elastic().state_dict()
    # The last of these projections is used in the Elastic net, whose level 4 is shallower.
    own = [name for name in state if name.removesuffix('.0.weight') in UNUSED[source]]
    assert 'level4.tree1.tree1.project.0.weight' in own
    own += ['level3.tree1.tree1.tree1.conv2.weight', 'level5.tree2.conv3.weight']
    assert all(torch.equal(state[name], initial[name]) for name in own)
    assert all(torch.equal(state[name], theirs[name]) for name in ('base_layer.0.weight', 'level5.root.conv.weight'))


def test_importing_it_needs_neither_timm_nor_safetensors():
    code = 'import sys, tools.import_weights; print({"timm", "safetensors"} & sys.modules.keys())'
    root = Path(__file__).parent.parent
    ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert (ended.stdout, ended.stderr) == ('set()\n', '')
