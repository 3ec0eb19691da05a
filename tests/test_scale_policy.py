"""Scale policies: the interface that observes elastic blocks, what is measured with it, and the tool that draws it."""

import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from models.elastic import Split, observed
from tests.conftest import Script
from tests.nets import FAMILIES, noise
from tests.reference import load_weights
from tools.scale_policy import __main__ as scale_policy
from tools.scale_policy.policy import measure, stage_of

STAGES = {  # blocks by stage: all of them, the elastic ones
    'small': ((2, 2, 2, 1), (2, 1, 1)),
    'dla_elastic': ((2, 2, 2, 2), (1, 1, 1)),
    'densenet_elastic': ((2, 1, 1, 1), (2, 1, 1)),
}


def images(count: int = 2, pixels: int = 64) -> torch.Tensor:
    return noise(count, 3, pixels, pixels, dtype=torch.float64)


@pytest.fixture(params=STAGES)
def family(request, small):
    """The name of a net and the net, in float64 so that batches of any size agree, its residual branches awake."""
    build = small if request.param == 'small' else FAMILIES[request.param]
    return request.param, load_weights(build(8).double()).eval()


@torch.no_grad()
def test_observed_branches_are_what_the_block_sums(family, monkeypatch):
    name, net = family
    blocks = {key: module for key, module in net.named_modules() if isinstance(module, Split)}
    sums, seen = [], []
    for block in blocks.values():
        if block.elastic:
            monkeypatch.setattr(block, 'merged', lambda x, of=block.merged: sums.append(of(x)) or sums[-1].clone())
    with observed(net, lambda name, output, branches: seen.append((name, branches))):
        net(images(1, 65))
    assert [name for name, _ in seen] == list(blocks)
    pairs = [branches for _, branches in seen if branches]
    assert len(pairs) == len(sums) == sum(STAGES[name][1])
    for (full, half), expected in zip(pairs, sums, strict=True):
        torch.testing.assert_close(full + half, expected)


@torch.no_grad()
def test_observing_changes_nothing_and_leaves_nothing(family):
    net, x = family[1], images()
    before, state = net(x), {name: value.clone() for name, value in net.state_dict().items()}
    with observed(net, lambda *_: None):
        assert torch.equal(net(x), before)
    with pytest.raises(ZeroDivisionError), observed(net, lambda *_: 1 / 0):
        net(x)
    assert torch.equal(net(x), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_net_in_training_is_refused(small):
    with pytest.raises(ValueError, match='training'), observed(small().train(), lambda *_: None):
        pass


@pytest.mark.parametrize('pixels', [64, 97])
def test_stages_are_those_of_the_resolution(family, pixels):
    name, net = family
    policies = measure(net, [images(1, pixels)], pixels)
    for blocks, counts in zip((policies.blocks, policies.elastic), STAGES[name], strict=True):
        assert [block.stage for block in blocks] == [stage for stage, n in enumerate(counts, 1) for _ in range(n)]
    assert {block.stage: block.sizes for block in policies.elastic} == {1: ('XL', 'L'), 2: ('L', 'M'), 3: ('M', 'S')}
    assert {block.sizes for block in policies.blocks if block.stage == 4} == {('S',)}


def test_stages_at_every_size():
    for pixels in range(32, 500):
        for round_up in ('111', '110', '100', '000'):  # stem and first stages up, as all nets; DenseNet then down
            side = -(-pixels // 4)
            for stage, up in enumerate(round_up, 1):
                assert stage_of(side, pixels) == stage
                side = (side + int(up)) // 2
    with pytest.raises(ValueError, match='32 pixels'):
        stage_of(32, 64)


@pytest.mark.parametrize('silent', ['full', 'half'])
def test_the_other_branch_wins_everywhere_where_one_is_silenced(family, silent):
    name, net = family
    last = ('conv2' if name.startswith('densenet') else 'conv3') + '_d' * (silent == 'half')
    blocks = [block for block in net.modules() if isinstance(block, Split) and block.elastic]
    for block in blocks:
        nn.init.zeros_(block.get_submodule(last).weight)
    policies = measure(net, [images()], 64)
    assert (policies.shares == (silent == 'half')).all()
    for image in range(2):
        sizes = Counter(size for block, size in zip(policies.blocks, policies.sizes(image), strict=True)
                        if block.elastic)  # fmt: skip
        offered = ('XL', 'L', 'M') if silent == 'half' else ('L', 'M', 'S')
        assert sizes == dict(zip(offered, STAGES[name][1], strict=True))


def test_responses_are_means_of_absolute_values_at_the_blocks_resolution(small):
    net, kept = small().double(), []
    block = net.layer1[0]
    for conv in (block.conv3, block.conv3_d):
        conv.register_forward_hook(lambda _, __, output: kept.append(output))
    responses = measure(net, [images(2, 74)], 74).responses[:, 0]
    low, high = sorted(kept[:2], key=lambda output: output.shape[-1])
    assert (low.shape[-1], high.shape[-1]) == (10, 19)
    low = F.interpolate(low, scale_factor=2, mode='bilinear')[..., :19, :19]
    for image in range(2):
        expected = [torch.as_tensor(abs(branch[image].numpy()).mean()) for branch in (high, low)]
        torch.testing.assert_close(responses[image], torch.stack(expected))


@pytest.fixture
def saved(small, folder, tmp_path):
    """A checkpoint of the small net for the classes of the folder."""
    content = {'arch': 'small', 'task': 'imagenet', 'classes': sorted(path.name for path in (folder / 'val').iterdir())}
    torch.save({**content, 'state_dict': small().state_dict()}, tmp_path / 'small.pth')
    return tmp_path / 'small.pth'


@pytest.fixture
def tool(saved, tmp_path):
    """The tool on this checkpoint, writing to out/policy.png."""
    return Script(scale_policy, saved, f'--image-size 64 --device cpu --out {tmp_path}/out/policy.png')


def numbers(tmp_path):
    with Image.open(tmp_path / 'out' / 'policy.png') as picture:
        assert picture.size[0] > 700
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'policy.png', 'policy.json'}
    return json.loads((tmp_path / 'out' / 'policy.json').read_text())


@pytest.mark.parametrize('rows', [2, 24])
def test_pictures(tool, saved, small, folder, tmp_path, monkeypatch, rows):
    """Also with a file of 2019, which names neither its net nor its classes."""
    monkeypatch.setattr('tools.scale_policy.figure.MOST_ROWS', rows)
    paths = [folder / 'val' / 'cat' / '0.png', folder / 'val' / 'ant' / '1.png', folder / 'train' / 'fox' / '2.png']
    tool(*paths)
    found = numbers(tmp_path)
    assert [image['file'] for image in found['images']] == list(map(str, paths))
    offered = [block['sizes'] for block in found['blocks']]
    assert offered == [['XL', 'L'], ['XL', 'L'], ['L'], ['L', 'M'], ['M'], ['M', 'S'], ['S']]
    for image in found['images']:
        assert all(size in sizes for size, sizes in zip(image['sizes'].split(), offered, strict=True))
        shares = [full / (full + half) for full, half in zip(image['full'], image['half'], strict=True)]
        assert [image['share'], *image['shares']] == pytest.approx([sum(shares) / 4, *shares], rel=1e-3)
    torch.save(small().state_dict(), saved)
    tool(*paths, '--arch', 'small')
    assert numbers(tmp_path) == found


@pytest.mark.parametrize('classes', [4, 24])
def test_a_folder_by_class_and_its_extremes(tool, folder, tmp_path, monkeypatch, classes):
    monkeypatch.setattr('tools.scale_policy.figure.MOST_CLASSES', classes)
    tool(folder / 'val', '-b', 5)
    found = numbers(tmp_path)
    assert list(found['classes']) == ['ant', 'bee', 'cat', 'dog', 'eel', 'fox']
    for name, summary in found['classes'].items():
        members = [image for image in found['images'] if f'/val/{name}/' in image['file']]
        assert summary['images'] == len(members) == sum(image['class'] == name for image in found['images']) == 3
        assert summary['share'] == pytest.approx(sum(image['share'] for image in members) / 3, rel=1e-3)
        prefer = [sum(image['shares'][block] >= 0.5 for image in members) / 3 for block in range(4)]
        assert summary['prefer_full'] == pytest.approx(prefer, rel=1e-3)
    ranked = [image['file'] for image in sorted(found['images'], key=lambda image: image['share'])]
    assert (found['least'], found['most']) == (ranked[:10], ranked[:-11:-1])


def test_mistakes_are_one_line_and_leave_nothing(tool, saved, folder, tmp_path, capsys, monkeypatch):
    picture = folder / 'val' / 'cat' / '0.png'
    assert 'no picture and no folder' in tool.error(capsys, picture, folder / 'nowhere.png')
    assert 'give one folder, or pictures' in tool.error(capsys, picture, folder / 'val')
    assert f'cannot write {saved}/x.png' in tool.error(capsys, picture, '--out', f'{saved}/x.png')
    assert '--out' in tool.error(capsys, picture, '--out', tmp_path / 'x.jpg')
    picture.write_bytes(picture.read_bytes()[:200])
    assert str(picture) in tool.error(capsys, picture)
    monkeypatch.setattr(scale_policy, 'is_elastic', lambda model: False)
    assert 'small has no elastic block' in tool.error(capsys, folder / 'val')
    assert not list(tmp_path.glob('out/*'))
