"""Imported weights: outputs against torchvision's and timm's nets, and what does not fit."""

import re
import shutil
import sys

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from models.dla import DLA
from models.norm import batch_norms
from tests import nets
from tests.conftest import Script
from tools import import_weights
from tools.import_weights import SOURCES
from utils import checkpoint
from utils.checkpoint import CheckpointMeta, load_for_evaluation
from utils.errors import UserError

CLASSES = [str(n) for n in range(1000)]
RESNEXT, SE, DENSENET = 'torchvision/resnext50_32x4d', 'timm/seresnext50_32x4d', 'torchvision/densenet201'
OLD = 'features.denseblock1.denselayer1.conv.1.weight'
UNUSED = {
    'timm/dla60x': ['level3.project', 'level4.tree1.project', 'level4.project'],
    'timm/dla102x': [
        *('level3.tree1.project', 'level3.project'),
        *('level4.tree1.tree1.project', 'level4.tree1.project', 'level4.project'),
    ],
}


def library_net(source):
    """The library's net with random weights and running statistics, and counts of 7 batches."""
    library, name = source.split('/')
    with torch.device('meta'):
        net = torchvision.models.get_model(name) if library == 'torchvision' else timm.create_model(name)
    for norm in batch_norms(nets.load_weights(net)):
        norm.num_batches_tracked.fill_(7)
    return net.eval()


@pytest.fixture
def importer(tmp_path):
    """Gives the script for a state dict in a file as its source publishes it; files, of 200 MB, go with the test."""
    folder = tmp_path / 'import'
    folder.mkdir()

    def script(source, state):
        save, name = (save_file, 'weights.safetensors') if source.startswith('timm/') else (torch.save, 'weights.pth')
        save(state, folder / name)
        return Script(import_weights, source, f'{folder / name} {folder}/out.pth.tar')

    yield script
    shutil.rmtree(folder)


def of_2017(state):
    """A DenseNet's state under its names of then, when batch norms counted nothing."""
    old = {re.sub(r'(layer\d+\.(?:norm|conv))([12]\.)', r'\1.\2', name): value for name, value in state.items()}
    assert OLD in old
    return {name: value for name, value in old.items() if not name.endswith('num_batches_tracked')}


QUICK = RESNEXT, SE, 'timm/dla60x', DENSENET


@pytest.mark.parametrize('source', [pytest.param(s, marks=[] if s in QUICK else pytest.mark.slow) for s in SOURCES])
def test_outputs_are_the_librarys(importer, capsys, source):
    """In float64, in which no wrong tensor hides in rounding, and with odd maps, which the libraries' DLA refuse.

    Untrained projections, which files may hold though timm's nets lack them, are not taken.
    """
    theirs, arch, is_old = library_net(source), SOURCES[source], source == DENSENET
    state = dict(theirs.state_dict())
    for name in UNUSED.get(source, ()):
        width = 256 if name.startswith('level3.') else 512
        state |= {f'{name}.0.weight': torch.zeros(width, width // 2, 1, 1), f'{name}.1.bias': torch.ones(width)}
    script = importer(source, of_2017(state) if is_old else state)
    script()
    found, net = checkpoint.read(script.shared[-1]), nets.on_meta(arch).to_empty(device='cpu').eval()
    load_for_evaluation(net, found, CheckpointMeta('imagenet', arch, CLASSES))  # as classify.py --evaluate does
    assert (found.task, found.arch, found.epoch, found.classes) == ('imagenet', arch, 0, None)
    images = nets.noise(2, 3, 64, 64 if isinstance(net, DLA) else 75, dtype=torch.float64)
    with torch.inference_mode():
        outputs, expected = net.double()(images), theirs.double()(images)
    one, two = expected
    assert (one - two).abs().max() > 1e-3 * expected.abs().max(), 'what does not depend on the image proves nothing'
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-9 * expected.abs().max().item())
    told = capsys.readouterr().out.splitlines()[1:]
    assert told == ([f'   as initialised: {", ".join(UNUSED[source])}'] if source in UNUSED else [])
    assert all(net.get_submodule(name)[0].weight.any() for name in UNUSED.get(source, ()))
    counts = {norm.num_batches_tracked.item() for norm in batch_norms(net)}
    assert counts == ({0} if is_old else {0, 7} if source in UNUSED else {7})


def misfit(state):
    state['layer2.0.conv2.weight'] = state['layer2.0.conv2.weight'][:, :4].contiguous()
    state['layer1.1.bn1.weight'] = torch.tensor(1.0)
    state['stranger'] = state.pop('layer3.2.se.fc1.bias')
    del state['layer4.0.conv1.weight']


@pytest.mark.parametrize(
    'source, change, told',
    [
        (RESNEXT, lambda state: state.pop('bn1.num_batches_tracked'), 'missing: bn1.num_batches_tracked'),
        (SE, lambda state: state['fc.bias'].fill_(torch.nan), 'fc.bias is not finite'),
        (DENSENET, lambda state: state.update({OLD: torch.zeros(9)}), 'the same tensor under an old and a new name'),
        (
            *(SE, misfit),
            'missing: layer3.2.se.fc1.bias, layer4.0.conv1.weight; unexpected: stranger; of another shape: layer1.1.'
            'bn1.weight () instead of (128,), layer2.0.conv2.weight (256, 4, 3, 3) instead of (256, 8, 3, 3)',
        ),
    ],
)
def test_what_does_not_fit_is_named_as_the_library_names_it(importer, tmp_path, capsys, source, change, told):
    state = library_net(source).state_dict()
    change(state)
    assert told in importer(source, state).error(capsys)
    assert [path.stem for path in (tmp_path / 'import').iterdir()] == ['weights']


def test_existing_out_is_not_written_over(tmp_path, capsys):
    out = tmp_path / 'out.pth.tar'
    out.write_text('dear')
    assert f'{out} exists; it is not written over' in Script(import_weights, RESNEXT, f'x.pth {out}').error(capsys)
    assert out.read_text() == 'dear'


def test_missing_package_of_safetensors_files_and_a_damaged_one_are_named(tmp_path, monkeypatch):
    path = tmp_path / 'model.safetensors'
    save_file({'a': torch.zeros(3, 4)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=f'cannot read {path}: '):
        import_weights.read_weights(path)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(UserError, match=f'{path}: to read it needs pip install safetensors'):
        import_weights.read_weights(path)
