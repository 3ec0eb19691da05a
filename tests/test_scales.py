"""Nets and the scale of objects: which scales elastic blocks prefer, what errors objects of other scales cost."""

import json

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

import models
from data.image_folder import eval_transform, scaled_crop
from models.elastic import TwoBranch
from tests.checkpoints import save_net
from tests.conftest import Script, TinyNet
from tests.nets import FAMILIES, load_weights, noise
from tools import stress_test
from tools.policies import Block, measure, stage_of
from tools.scale_policy import __main__ as scale_policy
from tools.scale_policy.figure import draw_preferences
from utils.device import Compute
from utils.loader import MEAN, STD, DeviceLoader, EvalBatchSampler

STAGES = {  # blocks by stage: all of them, the elastic ones
    'small': ((2, 2, 2, 1), (2, 1, 1)),
    'dla_elastic': ((2, 2, 2, 2), (1, 1, 1)),
    'densenet_elastic': ((2, 1, 1, 1), (2, 1, 1)),
}


@pytest.fixture(params=STAGES)
def family(request, small):
    """The name of a net and the net, in float64 so that batches of any size agree, its residual branches awake."""
    build = small if request.param == 'small' else FAMILIES[request.param]
    return request.param, load_weights(build(8).double()).eval()


@torch.no_grad()
def test_branches_are_what_a_block_sums_and_to_measure_them_changes_nothing(family, monkeypatch):
    name, net = family
    x = noise(2, 3, 65, 65, dtype=torch.float64)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    sums, pairs, outputs = [], [], []
    blocks = {key: module for key, module in net.named_modules() if isinstance(module, TwoBranch)}
    for block in blocks.values():
        if block.elastic:
            total, apart = block.branch_sum, block.branches
            monkeypatch.setattr(block, 'branch_sum', lambda x, of=total: sums.append(of(x)) or sums[-1].clone())
            monkeypatch.setattr(block, 'branches', lambda x, of=apart: pairs.append(of(x)) or pairs[-1])
    before = net(x)
    sums.clear()
    monkeypatch.setattr(net, 'forward', lambda x, of=net.forward: outputs.append(of(x)) or outputs[-1])
    policies = measure(net, [x], 65)
    assert len(outputs) == 1 and torch.equal(outputs[0], before)
    assert [block.name for block in policies.blocks] == list(blocks)
    assert len(pairs) == len(sums) == sum(STAGES[name][1])
    for (full, half), expected in zip(pairs, sums, strict=True):
        torch.testing.assert_close(full + half, expected)
    means = torch.stack([torch.stack([branch.abs().mean((1, 2, 3)) for branch in pair], 1) for pair in pairs], 1)
    for measured in policies, measure(net, x.split(1), 65):
        torch.testing.assert_close(measured.responses, means)
    with pytest.raises(ValueError, match='of no stage'):  # within a block
        measure(net, [x], 4096)
    assert torch.equal(net(x), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match='training'):
        measure(net.train(), [x], 65)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


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
def test_blocks_have_the_stages_of_their_resolution_and_the_other_branch_wins_where_one_is_silenced(family, silent):
    name, net = family
    last = ('conv2' if name.startswith('densenet') else 'conv3') + '_d' * (silent == 'half')
    for block in net.modules():
        if isinstance(block, TwoBranch) and block.elastic:
            nn.init.zeros_(block.get_submodule(last).weight)
    policies = measure(net, [noise(2, 3, 97, 97, dtype=torch.float64)], 97)
    for blocks, counts in zip((policies.blocks, policies.elastic), STAGES[name], strict=True):
        assert [block.stage for block in blocks] == [stage for stage, n in enumerate(counts, 1) for _ in range(n)]
    assert (policies.shares == (silent == 'half')).all()
    for image in range(2):
        for block, size in zip(policies.blocks, policies.sizes(image), strict=True):
            assert block.sizes == ('XL', 'L', 'M', 'S')[block.stage - 1 : block.stage + block.elastic]
            assert size == block.sizes[-1 if silent == 'full' else 0]


@pytest.fixture
def policy(small, folder, tmp_path):
    """The tool on a checkpoint of the small net for the classes of the folder, writing to out/policy.png."""
    classes = sorted(path.name for path in (folder / 'val').iterdir())
    save_net(tmp_path / 'small.pth', small(), arch='small', task='imagenet', classes=classes)
    return Script(scale_policy, tmp_path / 'small.pth', f'--image-size 64 --device cpu -o {tmp_path}/out/policy.png')


def numbers(tmp_path):
    with Image.open(tmp_path / 'out' / 'policy.png') as picture:
        assert picture.size[0] > 700
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'policy.png', 'policy.json'}
    return json.loads((tmp_path / 'out' / 'policy.json').read_text())


def test_policies_of_pictures(policy, folder, tmp_path, monkeypatch):
    """Also with a file of 2019, which names neither its net nor its classes, and with more pictures than are drawn."""
    paths = [folder / 'val' / 'cat' / '0.png', folder / 'val' / 'ant' / '1.png', folder / 'train' / 'fox' / '2.png']
    policy(*paths)
    found = numbers(tmp_path)
    assert [image['file'] for image in found['images']] == list(map(str, paths))
    offered = [block['sizes'] for block in found['blocks']]
    assert offered == [['XL', 'L'], ['XL', 'L'], ['L'], ['L', 'M'], ['M'], ['M', 'S'], ['S']]
    for image in found['images']:
        assert all(size in sizes for size, sizes in zip(image['sizes'].split(), offered, strict=True))
        shares = [full / (full + half) for full, half in zip(image['full'], image['half'], strict=True)]
        assert [image['share'], *image['shares']] == pytest.approx([sum(shares) / 4, *shares], rel=1e-3)
    torch.save(torch.load(tmp_path / 'small.pth')['state_dict'], tmp_path / 'small.pth')
    monkeypatch.setattr('tools.scale_policy.figure.MOST_ROWS', 2)
    policy(*paths, '--arch', 'small')
    assert numbers(tmp_path) == found


def test_a_net_of_coco_is_shown_whole_pictures_as_in_its_test(policy, small, tmp_path):
    Image.new('RGB', (400, 200), 'red').save(tmp_path / 'wide.png')
    with Image.open(tmp_path / 'wide.png') as picture:
        picture.paste('blue', (0, 0, 90, 200))  # which no central crop holds
        picture.save(tmp_path / 'wide.png')
        whole = normalize(to_tensor(picture.resize((64, 64), Image.Resampling.BILINEAR)), MEAN, STD)
    net = save_net(tmp_path / 'small.pth', small(), arch='small', task='coco', classes=list('abcdef'))
    policy(tmp_path / 'wide.png')
    (image,) = numbers(tmp_path)['images']
    assert image['shares'] == pytest.approx(measure(net.eval(), [whole[None]], 64).shares[0].tolist(), rel=1e-3)


@pytest.mark.parametrize('classes', [4, 24])
def test_policies_of_a_folder_by_class_and_its_extremes(policy, folder, tmp_path, monkeypatch, classes):
    monkeypatch.setattr('tools.scale_policy.figure.MOST_CLASSES', classes)
    policy(folder / 'val', '-b', 5)
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


def test_names_of_classes_are_no_formulas():
    figure, blocks = Figure(), [Block('a', 1, elastic=True)]
    draw_preferences(figure.subplots(), blocks, {'$_$': {'prefer_full': [0.5], 'share': 0.5}}, '')
    figure.draw_without_rendering()


def test_mistakes_about_policies_are_one_line_and_leave_nothing(policy, folder, tmp_path, capsys, monkeypatch):
    picture = folder / 'val' / 'cat' / '0.png'
    assert 'no picture and no folder' in policy.error(capsys, picture, folder / 'nowhere.png')
    assert 'give one folder, or pictures' in policy.error(capsys, picture, folder / 'val')
    assert 'holds train and val' in policy.error(capsys, folder)
    assert '--out' in policy.error(capsys, picture, '--out', tmp_path / 'x.jpg')
    picture.write_bytes(picture.read_bytes()[:200])
    assert str(picture) in policy.error(capsys, picture)
    monkeypatch.setattr(scale_policy, 'is_elastic', lambda model: False)
    assert 'small has no elastic block' in policy.error(capsys, folder / 'val')
    assert not list(tmp_path.glob('out/*'))


# Objects of other scales


@pytest.mark.parametrize('factor', [0.25, 0.5, 0.75, 1.5, 3])
def test_an_object_grows_by_the_factor(factor):
    """A white square of a quarter of the picture's width, which is 64 pixels as the usual test resizes it."""
    picture = Image.new('RGB', (160, 128))
    picture.paste('white', (64, 48, 96, 80))
    assert torch.equal(scaled_crop(224, 1)(picture)[:3], eval_transform(224)(picture))
    seen = scaled_crop(56, factor)(picture)
    assert seen[0, 28].sum().item() / 255 == pytest.approx(min(16 * factor, 56), abs=0.3)
    inside = seen[3].bool()
    rows, columns = (inside.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    assert (len(rows), len(columns)) == (min(round(64 * factor), 56), min(round(80 * factor), 56))
    assert inside.sum() == len(rows) * len(columns)
    assert all(abs(56 - 1 - first - last) <= 1 for first, *_, last in (rows, columns))
    ((images, _),) = DeviceLoader([(seen, 0)], EvalBatchSampler([range(1)], 1), Compute('cpu'), 0)
    assert (images[0][:, ~inside] == 0).all()  # the mean color
    torch.testing.assert_close(images[0][:, inside], normalize(seen[:3] / 255, MEAN, STD)[:, inside])


class Ruler(TinyNet):
    """Says class 1, `big`, where more than a tenth of the picture is white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        white = (x.amin(1) > 2).double().mean((1, 2))
        return torch.stack([0.1 - white, white - 0.1], 1)


@pytest.fixture
def stress(tmp_path, monkeypatch):
    """The tool on a Ruler and dark pictures of 64 pixels, a white square of 16 (small) or 24 (big) in the middle."""
    for label, first, last, count in (('0_small', 24, 40, 3), ('1_big', 20, 44, 2)):
        (tmp_path / 'data' / 'val' / label).mkdir(parents=True)
        picture = Image.new('RGB', (64, 64))
        picture.paste('white', (first, first, last, last))
        for number in range(count):
            picture.save(tmp_path / 'data' / 'val' / label / f'{number}.png')
    monkeypatch.setitem(models.classifiers, 'ruler', Ruler)
    save_net(tmp_path / 'ruler.pth', Ruler(2), arch='ruler', task='imagenet', classes=['0_small', '1_big'])
    arguments = f'{tmp_path}/data --image-size 56 --device cpu -b 2 --out {tmp_path}/out/stress.png'
    return Script(stress_test, tmp_path / 'ruler.pth', arguments)


def test_errors_of_a_net_that_measures_its_objects(stress, tmp_path, capsys):
    """16^2 of 56^2 pixels is 8 %, 24^2 18 %: half as large both look small, twice as large both look big."""
    stress('--factors', '2,0.5,1')
    told, found = capsys.readouterr(), json.loads((tmp_path / 'out' / 'stress.json').read_text())
    assert told.out.splitlines() == [
        '| Err@1 (%) with objects F times as large | 0.5 | 1 | 2 |',
        '| --- | ---: | ---: | ---: |',
        '| ruler | 40.00 | 0.00 | 60.00 |',
    ]
    lines = [f'ruler, {factor}:  * Err@1 {error}.000' for factor, error in ((0.5, 40), (1, 0), (2, 60))]
    assert [line.split(' Err@5')[0] for line in told.err.splitlines()] == lines
    assert (found['factors'], found['images'], found['image_size']) == ([0.5, 1, 2], 5, 56)
    assert (found['results']['ruler']['err1'], found['results']['ruler']['err5']) == ([40, 0, 60], [0, 0, 0])
    with Image.open(tmp_path / 'out' / 'stress.png') as picture:
        assert picture.size[0] > 500


def test_two_nets_share_a_table_and_the_nets_of_files_of_2019_are_said(stress, tmp_path, capsys):
    (tmp_path / 'old').mkdir()
    save_net(tmp_path / 'old' / 'ruler.pth', Ruler(2))
    two = Script(stress_test, tmp_path / 'old' / 'ruler.pth', ' '.join(stress.shared))
    two('--arch', 'ruler', '--arch', 'ruler')
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith(' | 0.5 | 0.71 | 1 | 1.41 | 2 |')
    names = [f'ruler ({name}ruler.pth)' for name in ('old/', '')]
    assert rows == [f'| {name} | 40.00 | 40.00 | 0.00 | 60.00 | 60.00 |' for name in names]
    assert list(json.loads((tmp_path / 'out' / 'stress.json').read_text())['results']) == names
    assert '--arch is given 1 times for 2 checkpoints' in two.error(capsys, '--arch', 'ruler')


def test_mistakes_about_factors_are_one_line_and_leave_nothing(stress, tmp_path, capsys, monkeypatch):
    for factors in '0', '-1', '1,x', 'nan', 'inf', '':
        assert '--factors' in stress.error(capsys, f'--factors={factors}')
    assert 'cannot write' in stress.error(capsys, '--out', tmp_path / 'ruler.pth' / 'stress.png')
    (tmp_path / 'data' / 'val' / '1_big').rename(tmp_path / 'data' / 'val' / '1_huge')
    assert 'its classes differ: 1_big where the data has 1_huge' in stress.error(capsys)
    (tmp_path / 'data' / 'val' / '1_huge').rename(tmp_path / 'data' / 'val' / '1_big')
    monkeypatch.setattr(Ruler, 'forward', lambda net, x: torch.full((len(x), 2), torch.nan))
    assert 'gives a loss that is not finite' in stress.error(capsys)
    assert not list(tmp_path.glob('out/*'))
