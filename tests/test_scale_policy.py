"""Scale policies: the interface that observes elastic blocks, what is measured with it, and the tool that shows it."""

import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import models
from models.densenet import DenseLayer
from models.elastic import Split, observed
from models.resnext import ResNeXt
from tests.conftest import Script
from tools import scale_policy
from utils import checkpoint
from utils.scale_policy import measure, stage_of

STAGES = {  # blocks by stage: all of them, the elastic ones
    'resnext50_elastic': ((6, 8, 5, 3), (6, 7, 4)),
    'dla60x_elastic': ((2, 4, 8, 2), (1, 3, 7)),
    'densenet201_elastic': ((10, 20, 40, 30), (10, 20, 40)),
}


def images(count: int = 2, pixels: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, pixels, pixels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope='module', params=STAGES)
def family(request):
    """The name of a net and the net, in float64 so that batches of any size agree, its residual branches awake."""
    torch.manual_seed(0)
    net = models.build_classifier(request.param, 8).double().eval()
    for name, module in net.named_modules():
        if name.endswith('bn3'):
            nn.init.ones_(module.weight)
    return request.param, net


def summed(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What each elastic block's branches sum to, taken from around the block: where the sum goes."""
    kept, handles = [], []
    for block in net.modules():
        if isinstance(block, DenseLayer) and block.elastic:
            hook = block.register_forward_hook(lambda _, inputs, output: kept.append(output[:, inputs[0].shape[1] :]))
            handles.append(hook)
        elif isinstance(block, Split) and block.elastic:
            handles.append(block.bn3.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].clone())))
    net(x)
    for handle in handles:
        handle.remove()
    return kept


@torch.no_grad()
def test_observed_branches_are_what_the_block_sums(family):
    name, net = family
    seen, x = [], images(1, 65)
    with observed(net, lambda name, output, branches: seen.append((name, branches))):
        net(x)
    assert [name for name, _ in seen] == [name for name, module in net.named_modules() if isinstance(module, Split)]
    pairs = [branches for _, branches in seen if branches]
    sums = summed(net, x)
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


def test_a_net_in_training_or_without_elastic_blocks_is_refused(small):
    with pytest.raises(ValueError, match='training'), observed(small().train(), lambda *_: None):
        pass
    with pytest.raises(ValueError, match='no block is elastic'):
        measure(models.dla60x(8).eval(), [], 64)


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
    weights = [block.get_submodule(last).weight for block in blocks]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        nn.init.zeros_(weight)
    policies = measure(net, [images()], 64)
    for weight, value in zip(weights, before, strict=True):
        weight.data.copy_(value)
    assert (policies.shares == (silent == 'half')).all()
    for image in range(2):
        sizes = Counter(size for block, size in zip(policies.blocks, policies.sizes(image), strict=True)
                        if block.elastic)  # fmt: skip
        offered = ('XL', 'L', 'M') if silent == 'half' else ('L', 'M', 'S')
        assert sizes == dict(zip(offered, STAGES[name][1], strict=True))


def test_a_batch_is_measured_as_one_by_one(family):
    net, x = family[1], images(3)
    batch, alone = measure(net, [x], 64), measure(net, x.split(1), 64)
    assert batch.responses.shape == (3, sum(STAGES[family[0]][1]), 2)
    assert 0 < batch.shares.min() < batch.shares.max() < 1
    torch.testing.assert_close(batch.responses, alone.responses)
    assert [batch.sizes(i) for i in range(3)] == [alone.sizes(i) for i in range(3)]
    assert batch.by_share() == sorted(range(3), key=batch.shares.mean(1).tolist().__getitem__)


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


# The tool


@pytest.fixture
def small(monkeypatch):
    """Builder of a ResNeXt of seven blocks, four of them elastic, as `small` in the registry."""

    def build(num_classes: int = 6) -> ResNeXt:
        torch.manual_seed(1)
        return ResNeXt((2, 2, 2, 1), num_classes, elastic=True).eval()

    monkeypatch.setitem(models.classifiers, 'small', build)
    return build


@pytest.fixture
def saved(small, folder, tmp_path):
    """A checkpoint of it for the classes of the folder."""
    classes = sorted(path.name for path in (folder / 'val').iterdir())
    content = {'arch': 'small', 'task': 'imagenet', 'classes': classes, 'state_dict': checkpoint.state_dict(small())}
    checkpoint.write(tmp_path / 'small.pth.tar', content)
    return tmp_path / 'small.pth.tar'


@pytest.fixture
def tool(saved, tmp_path):
    """The tool on this checkpoint, writing to out/policy.png."""
    return Script(scale_policy, saved, f'--image-size 64 --device cpu --out {tmp_path}/out/policy.png')


def numbers(tmp_path):
    with Image.open(tmp_path / 'out' / 'policy.png') as picture:
        assert picture.size[0] > 700
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'policy.png', 'policy.json'}
    return json.loads((tmp_path / 'out' / 'policy.json').read_text())


def test_pictures_one_by_one_and_together(tool, folder, tmp_path):
    paths = [folder / 'val' / 'cat' / '0.png', folder / 'val' / 'ant' / '1.png', folder / 'train' / 'fox' / '2.png']
    tool(*paths)
    together = numbers(tmp_path)
    assert [image['file'] for image in together['images']] == list(map(str, paths))
    assert [block['sizes'] for block in together['blocks']] == [
        ['XL', 'L'], ['XL', 'L'], ['L'], ['L', 'M'], ['M'], ['M', 'S'], ['S']
    ]  # fmt: skip
    for path, image in zip(paths, together['images'], strict=True):
        tool(path)
        (alone,) = numbers(tmp_path)['images']
        assert alone['sizes'] == image['sizes']
        for name in ('share', 'shares', 'full', 'half'):
            assert alone[name] == pytest.approx(image[name], rel=1e-3)
        assert image['shares'] == pytest.approx(
            [full / (full + half) for full, half in zip(image['full'], image['half'], strict=True)], rel=1e-3
        )


def test_a_folder_by_class_and_its_extremes(tool, folder, tmp_path):
    tool(folder / 'val', '-b', 5)
    found = numbers(tmp_path)
    assert list(found['classes']) == ['ant', 'bee', 'cat', 'dog', 'eel', 'fox']
    assert len(found['images']) == 18
    for name, summary in found['classes'].items():
        members = [image for image in found['images'] if image['class'] == name]
        assert summary['images'] == len(members) == 3
        assert all(f'/val/{name}/' in image['file'] for image in members)
        assert summary['share'] == pytest.approx(sum(image['share'] for image in members) / 3, rel=1e-3)
        prefer = [sum(image['shares'][block] >= 0.5 for image in members) / 3 for block in range(4)]
        assert summary['prefer_full'] == pytest.approx(prefer, rel=1e-3)
    ranked = [image['file'] for image in sorted(found['images'], key=lambda image: image['share'])]
    assert (found['least'], found['most']) == (ranked[:10], ranked[:-11:-1])


def test_many_pictures_and_classes_are_drawn_in_part(tool, folder, tmp_path, monkeypatch):
    monkeypatch.setattr('utils.policy_figure.MOST_ROWS', 2)
    monkeypatch.setattr('utils.policy_figure.MOST_CLASSES', 4)
    tool(*sorted((folder / 'val').glob('*/0.png')))
    assert len(numbers(tmp_path)['images']) == 6
    tool(folder / 'val')
    assert len(numbers(tmp_path)['classes']) == 6


def test_a_file_of_2019_names_neither_net_nor_classes(tool, saved, small, folder, tmp_path, capsys):
    picture = folder / 'val' / 'cat' / '0.png'
    tool(picture)
    named = numbers(tmp_path)
    torch.save(checkpoint.state_dict(small()), saved)
    tool(picture)
    assert numbers(tmp_path) == named
    assert 'does not fit the net' in tool.error(capsys, picture, '--arch', 'se_resnext50_elastic')
    assert 'holds no classifier.bias' in tool.error(capsys, picture, '--arch', 'densenet201')
    tool(picture, '--arch', 'small')
    assert numbers(tmp_path) == named


def test_mistakes_are_one_line_and_leave_nothing(tool, saved, folder, tmp_path, capsys):
    picture = folder / 'val' / 'cat' / '0.png'
    assert 'no picture and no folder' in tool.error(capsys, picture, folder / 'nowhere.png')
    assert 'give one folder, or pictures' in tool.error(capsys, picture, folder / 'val')
    assert f'cannot write {saved}/x.png' in tool.error(capsys, picture, '--out', f'{saved}/x.png')
    assert '--out' in tool.error(capsys, picture, '--out', tmp_path / 'x.jpg')
    assert '--image-size' in tool.error(capsys, picture, '--image-size', 31)
    assert 'small.pth.tar: a checkpoint of small' in tool.error(capsys, picture, '--arch', 'resnext50_elastic')
    picture.write_bytes(picture.read_bytes()[:200])
    assert str(picture) in tool.error(capsys, picture)
    (folder / 'val' / 'dog' / 'x.png').touch()
    assert 'dog/x.png' in tool.error(capsys, folder / 'val' / 'dog' / 'x.png')
    plain = {'arch': 'dla60x', 'classes': ['a', 'b'], 'state_dict': checkpoint.state_dict(models.dla60x(2))}
    checkpoint.write(saved, plain)
    assert 'dla60x has no elastic block' in tool.error(capsys, folder / 'val')
    assert not list(tmp_path.glob('out/*'))
