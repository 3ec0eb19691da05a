"""The miniature comparison: pictures whose size is known, errors by size, nets, runs, differences, scale policies."""

import copy
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from data import scenes
from data.scenes import CLASS_NAMES
from tests.conftest import Script
from tests.nets import load_weights
from tests.pictures import write_fashion
from tests.runs import epochs
from tools.miniature import __main__ as miniature
from tools.miniature import data as scaled_objects
from tools.miniature import policy, report, study
from tools.miniature.data import FACTORS, SHAPE_SIZES, THIRDS, jitter, jittered_photos, shapes, third_of
from tools.miniature.jobs import side_by_side
from tools.miniature.study import Recipe, ScaleError
from utils import checkpoint
from utils.device import Compute
from utils.errors import UserError
from utils.loader import DeviceLoader, EvalBatchSampler

WHITE = np.full((28, 28), 255, np.uint8)
# One pass over 32 shapes, two over 16 photos.
QUICK = Recipe(updates=4, batch_size=8, train=(32, 16), test=(16, 20))


@pytest.fixture(scope='module')
def fashion(tmp_path_factory):
    """Fashion-MNIST's four files, of 40 white photos each."""
    white = np.stack([WHITE] * 40)
    return write_fashion(tmp_path_factory.mktemp('fashion'), white, white)


def test_shapes_are_drawn_from_seed_part_and_number_and_kept(tmp_path, monkeypatch):
    train, val = (shapes(tmp_path, 0, part, 48, 1) for part in ('train', 'val'))
    longer = shapes(tmp_path, 0, 'train', 52, 1)
    assert np.array_equal(longer.pictures[:48], train.pictures)
    assert np.array_equal(longer.sizes[:48], train.sizes)
    for other in val, shapes(tmp_path, 1, 'train', 8, 1):
        assert not np.isin(other.sizes, train.sizes).any()
    assert np.bincount(train.labels).tolist() == [6] * len(CLASS_NAMES)
    assert 7.5 <= train.sizes.min() < 9 and 38 < train.sizes.max() <= 45
    assert SHAPE_SIZES == (7.5, 45)
    monkeypatch.setattr(scaled_objects, 'draw_cells', None)
    assert np.array_equal(shapes(tmp_path, 0, 'val', 48, 1).pictures, val.pictures)
    picture, target = train[5]
    assert picture.shape == (3, 48, 48) and picture.dtype == torch.uint8
    assert tuple(target.tolist()) == (train.labels[5], third_of(train.sizes[5], SHAPE_SIZES))
    assert torch.equal(replace(train, transform=lambda pixels: pixels.flip(1))[5][0], picture.flip(1))


def test_shapes_look_as_large_as_they_are_said_to_be(tmp_path, monkeypatch):
    """Drawn as their masks, which have a border of 0.375 pixels: the longer side is as the size says."""

    def masks(*args):
        scene = scenes.render_scene(*args)
        return scene._replace(picture=np.stack([(scene.mask > 0) * np.uint8(255)] * 3, 2))

    monkeypatch.setattr(scaled_objects, 'render_scene', masks)
    found = shapes(tmp_path, 0, 'train', 16, 1)
    for picture, size in zip(found.pictures, found.sizes, strict=True):
        _, *places = np.nonzero(picture > 127)
        assert max(np.ptp(place) + 1 for place in places) == pytest.approx(size + 0.75, abs=1.5)


def test_photos_are_drawn_from_seed_part_and_number_as_large_as_they_are_said_to_be(fashion):
    few, photos = (jittered_photos(fashion, 0, 'train', count) for count in (10, 40))
    assert np.array_equal(few.pictures, photos.pictures[:10])
    assert few.labels.tolist() == list(range(10))
    assert np.array_equal(jitter(0, 'train', 3, WHITE)[0], few.pictures[3, 0])
    for others in (1, 'train', 3), (0, 'val', 3), (0, 'train', 4):
        assert jitter(*others, WHITE)[1] != few.sizes[3]
    for picture, size in zip(photos.pictures[:, 0], photos.sizes, strict=True):
        rows, columns = np.nonzero(picture > 150)
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == round(size)
        assert len(rows) == round(size) ** 2
    sizes = [jitter(0, 'val', number, WHITE)[1] / 28 for number in range(600)]
    counts, _ = np.histogram(np.log(sizes), bins=6, range=np.log(FACTORS))
    assert counts.sum() == 600 and (abs(counts - 100) < 40).all()  # 4 standard deviations


def test_errors_by_size_add_up():
    """A third of the logarithm's range each."""
    assert [third_of(size, (10, 80)) for size in (10, 19.9, 20.1, 39.9, 40.1, 80)] == [0, 0, 1, 1, 2, 2]
    errors, resumed = (ScaleError(torch.device('cpu')) for _ in range(2))
    torch.manual_seed(0)
    outputs, labels, thirds = torch.randn(50, 8), torch.randint(8, (50,)), torch.randint(3, (50,))
    for part in (slice(0, 32), slice(32, 50)):
        errors.update(torch.tensor(1.0), outputs[part], torch.stack([labels[part], thirds[part]], 1))
    found, wrong = errors.compute(), outputs.argmax(1) != labels
    assert found['err1'] == pytest.approx(2 * wrong.sum().item())
    assert list(found['pictures'].values()) == thirds.bincount().tolist()
    for number, name in enumerate(THIRDS):
        assert found[name] == pytest.approx(100 * wrong[thirds == number].double().mean().item())
    resumed.load_state_dict(errors.state_dict())
    assert resumed.compute() == found


def test_the_nets_differ_as_in_the_paper_and_in_nothing_else_and_all_updates_are_done():
    """(3, 4, 6, 3) becomes (6, 8, 5, 3): the first two doubled, one fewer in the third, the last as it is."""
    base, elastic, deep, narrow = study.RESNEXTS.values()
    first, second, third, fourth = base['depths']
    assert elastic['depths'] == deep['depths'] == narrow['depths'] == (2 * first, 2 * second, third - 1, fourth)
    scales = {net: [block.elastic for block in study.build(net, 8).blocks()] for net in study.RESNEXTS}
    assert scales.pop('elastic') == [True, True, False, True, True, True, False, True, False]
    assert not any(map(any, scales.values()))
    costs = study.costs(8)
    parameters, macs = ([cost[place] for cost in costs.values()] for place in (0, 1))
    assert [round(number / 1e6, 2) for number in parameters[:4]] == [4.59, 4.47, 4.47, 4.15]
    assert parameters[1] == parameters[2] and macs[2] > 1.1 * macs[1]
    assert parameters[4] == parameters[5] and macs[4] > macs[5]
    for equal in macs[1], macs[3]:
        assert equal == pytest.approx(macs[0], rel=0.01)
    assert macs[3] == pytest.approx(macs[1], rel=0.01)
    for pictures in study.RECIPE.train:  # fill whole epochs
        assert pictures % study.RECIPE.batch_size == 0
        assert study.RECIPE.epochs(pictures) * pictures == study.RECIPE.updates * study.RECIPE.batch_size


@pytest.fixture
def quick(monkeypatch, fashion, tmp_path):
    """The tool with a handful of updates, in this process."""
    monkeypatch.setattr(study, 'available_cores', lambda: 1)
    monkeypatch.setattr(miniature, 'RECIPE', QUICK)
    monkeypatch.setattr('utils.logger.draw_curves', lambda *_: None)  # which takes longer than the runs
    return Script(miniature, '--device', f'cpu --jobs 1 --output {tmp_path}/out --source {fashion} --seeds 3')


def test_runs_are_noted_and_not_repeated_and_go_on_where_they_were_cut_off(quick, tmp_path, capsys, monkeypatch):
    quick()
    printed, out = capsys.readouterr().out, tmp_path / 'out'
    folders = [out / f'{data}_{net}_3' for data in study.CLASSES for net in study.NETS]
    assert {path.parent for path in out.rglob('*.pth.tar')} == {folders[1], folders[7]}  # to look at
    assert (out / 'miniature.md').read_text() == printed
    noted, looks = (json.loads((out / f'miniature{name}.json').read_text()) for name in ('', '_policy'))
    assert noted['recipe']['updates'] == looks['recipe']['updates'] == QUICK.updates
    assert noted['results'] == [json.loads((folder / 'result.json').read_text()) for folder in folders]
    assert [sum(result['pictures'].values()) for result in noted['results']] == [16] * 6 + [20] * 6
    assert [len(epochs(folder)) for folder in folders] == [2] * 6 + [3] * 6  # with the line that begins a run
    for look, result in zip(looks['looks'], noted['results'][1::6], strict=True):
        assert {name: result[name] for name in look['error']} == pytest.approx(look['error'])
    with monkeypatch.context() as patch:
        patch.setattr(study, 'Trainer', None)
        patch.setattr(policy, 'build', None)
        quick()
    assert capsys.readouterr().out == printed
    shutil.rmtree(folders[0])
    with monkeypatch.context() as patch, pytest.raises(TypeError):  # trained anew, but cut off at the test
        patch.setattr(study, 'evaluate', None)
        quick()
    quick('--source', tmp_path / 'nowhere')
    told = capsys.readouterr()
    assert f'no folder {tmp_path}/nowhere: Fashion-MNIST is left out' in told.err
    assert {row.split()[1] for row in told.out.splitlines() if row.startswith('| ')} == {'data', '---', 'shapes'}
    assert sum('epoch' in record for record in epochs(folders[0])) == 1  # it was not trained again
    again = json.loads((folders[0] / 'result.json').read_text())
    assert again | {'seconds': 0} == noted['results'][0] | {'seconds': 0}
    recipe = json.loads((out / 'recipe.json').read_text())
    del recipe['nets']['regnety']  # a net that is added is no other recipe
    (out / 'recipe.json').write_text(json.dumps(recipe))
    quick('--source', tmp_path / 'nowhere')
    monkeypatch.setattr(miniature, 'RECIPE', replace(QUICK, lr=0.1))
    assert 'another recipe' in quick.error(capsys)


@pytest.mark.parametrize('count', [1, 2])
def test_tasks_side_by_side_are_done_once_and_one_that_fails_is_named(tmp_path, capfd, count):
    paths = [tmp_path / name for name in ('x', 'xx', 'xxx')]
    paths[1].write_text('{"number": 7}')  # which is not done again
    found = side_by_side({path: partial(path.write_text, f'{{"number": {len(path.name)}}}') for path in paths}, count)
    assert [result['number'] for result in found] == [1, 7, 3]
    with pytest.raises(UserError, match='no .*d' if count == 1 else 'd was not made: its process ended with status 1'):
        side_by_side({tmp_path / 'd': partial(checkpoint.read, tmp_path / 'd')}, count)
    assert ('error: no' in capfd.readouterr().err) == (count == 2)


def wait(path):
    """Tell one's process number, and end by a signal alone."""
    path.with_suffix('.pid').write_text(str(os.getpid()))
    time.sleep(600)


def test_what_runs_side_by_side_ends_with_a_signal_and_with_its_parent(tmp_path):
    """The parent has a signal of its own, or is killed: none of its children is left."""
    tasks = {tmp_path / name: partial(wait, tmp_path / name) for name in 'ab'}
    for number, ending in (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL):
        parent = multiprocessing.get_context('spawn').Process(target=side_by_side, args=(tasks, 2))
        parent.start()
        children = []
        while len(children) < 2 or not all(children):
            time.sleep(0.1)
            children = [path.read_text() for path in tmp_path.glob('*.pid')]
        os.kill(parent.pid, number)
        parent.join()
        assert parent.exitcode == ending
        while any(os.path.exists(f'/proc/{child}') for child in children):
            time.sleep(0.1)
        for path in tmp_path.glob('*.pid'):
            path.unlink()


def test_wrong_seeds_and_a_table_that_cannot_be_written(quick, tmp_path, capsys):
    for seeds in '', '0,0', '-1', '1.5', 'x':
        assert '--seeds' in quick.error(capsys, f'--seeds={seeds}')
    (tmp_path / 'out' / 'miniature.md').mkdir(parents=True)
    assert quick.error(capsys) == f'error: cannot write {tmp_path}/out/miniature.md: it is a folder'


ERRORS = {'base': [30, 32, 37], 'elastic': [29, 29, 29], 'deep': [30, 30, 30], 'deep-equal-cost': [28, 30, 32]}
ERRORS |= {'regnety': [40, 40, 40], 'regnety-elastic': [41, 41, 42]}
THREE = [  # the thirds' errors are 10 below, 0 and 10 above that of all
    {'data': 'shapes', 'net': net, 'seed': seed, 'err1': all_, 'small': all_ - 10, 'medium': all_, 'large': all_ + 10}
    for net, errors in ERRORS.items()
    for seed, all_ in enumerate(errors)
]
COSTS = {'shapes': dict.fromkeys(ERRORS, (4_590_000, 47_000_000))}


def test_intervals_are_those_of_students_t():
    """(30, 32, 37): mean 33, squares of the differences 9 + 1 + 16, over 2: 13; t of 2 degrees, 97.5 %: 4.302653."""
    reach = 4.302653 * (13 / 3) ** 0.5
    assert report.interval([30, 32, 37]) == pytest.approx((33 - reach, 33 + reach))
    values = [1.2, -0.4, 0.9, 2.2, 0.1]
    assert report.interval(values) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    assert all(map(np.isnan, report.interval([30])))
    assert (report.spread([30, 32, 37]), report.spread([30]), report.spread([])) == ('33.00 ± 3.61', '30.00', '')
    assert report.paired(values) == '+0.80 (-0.45 to +2.05), 1 -, 4 +'
    assert (report.paired([-0.5]), report.paired([])) == ('-0.50', '')


def test_tables_and_plot_of_given_results():
    shuffled = sorted(THREE, key=lambda result: -result['seed'])  # differences are of one seed, whatever the order
    errors, differences, claims, limits = (part.splitlines() for part in report.tables(shuffled, COSTS).split('\n\n'))
    assert errors[0].endswith(' | error, all (%) | error, small (%) | error, medium (%) | error, large (%) |')
    assert errors[2:4] == [
        '| shapes | base | 3 | 4.59 | 0.0470 | 33.00 ± 3.61 | 23.00 ± 3.61 | 33.00 ± 3.61 | 43.00 ± 3.61 |',
        '| shapes | elastic | 3 | 4.59 | 0.0470 | 29.00 ± 0.00 | 19.00 ± 0.00 | 29.00 ± 0.00 | 39.00 ± 0.00 |',
    ]
    assert differences[2].startswith('| shapes | elastic - base | -4.00 (-12.96 to +4.96), 3 -, 0 + |')
    assert len(differences) == 2 + 7 and limits == [report.LIMITS]
    verdicts = [row.removesuffix(' |').split(' | ')[-1] for row in claims[2:]]
    assert verdicts == ['undecided', 'undecided', 'undecided', 'yes', 'undecided']
    assert report.verdict([1, 1.1, 1.2]) == 'no, the contrary'
    assert len(report.tables([result for result in THREE if result['seed'] == 0], COSTS).split('\n\n')) == 2
    above, below = report.draw([result | {'small': None} for result in THREE]).axes  # without pictures: left out
    points, _, (lines,) = above.containers[0]
    assert points.get_ydata().tolist() == pytest.approx([33, 33, 43])
    assert lines.get_segments()[0][:, 1].tolist() == pytest.approx(report.interval([30, 32, 37]))
    assert below.containers[0][0].get_ydata().tolist() == pytest.approx([-4, -4, -4])


@pytest.fixture(scope='module')
def looked(tmp_path_factory):
    """An Elastic net, its residual branches awake, test pictures, and their loader."""
    test = shapes(tmp_path_factory.mktemp('looked'), 0, 'val', 24, 1)
    loader = DeviceLoader(test, EvalBatchSampler([range(24)], 10), Compute('cpu'), 0)
    return load_weights(study.build('elastic', 8)).eval(), test, loader


def test_to_remove_a_branch_changes_nothing_where_it_is_constant(looked):
    net, test, loader = copy.deepcopy(looked)
    conv, outputs, images = net.layer2[1].conv3_d, [], next(iter(loader))[0]
    handle = conv.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        for batch, _ in loader:
            net(batch)
        handle.remove()
        before, mean = net(images), policy.mean_contributions(net, loader)['layer2.1.conv3_d']
        torch.testing.assert_close(mean.float(), torch.cat(outputs).mean(0), atol=1e-5, rtol=1e-4)
        with policy.replaced(conv, mean):
            assert not torch.allclose(net(images), before)  # other than where it varies
        assert torch.equal(net(images), before)
        conv.weight.zero_()
        conv.bias = nn.Parameter(torch.full((512,), 3.0))  # what the branch contributes is the same for every picture
        with policy.replaced(conv, policy.mean_contributions(net, loader)['layer2.1.conv3_d']):
            removed = net(images)
        torch.testing.assert_close(removed, net(images))
    assert policy.look(net, test, loader)['rise']['layer2.1']['half'] == dict.fromkeys(THIRDS, 0.0)


def test_policies_over_the_size(looked, monkeypatch):
    net, test, loader = looked
    shares = torch.from_numpy(np.log(test.sizes))[:, None].expand(-1, 6) / 10  # grows with the size
    real = policy.measure(net, (images for images, _ in loader), 48)
    monkeypatch.setattr(policy, 'measure', lambda *_: real)
    monkeypatch.setattr(real, 'shares', shares)
    found = policy.look(net, test, loader)
    assert [block['correlation'] for block in found['blocks']] == pytest.approx([1] * 6)
    names = [block['name'] for block in found['blocks']]
    assert names == [f'layer{place}' for place in ('1.0', '1.1', '2.1', '2.2', '2.3', '3.1')]
    for block in found['blocks']:
        assert block['mean_share'] == pytest.approx(shares[:, 0].mean().item())
        assert block['share'][0] == pytest.approx(np.log(sorted(test.sizes)[:3]).mean() / 10)
    looks = [{'data': 'shapes', 'seed': seed, **found} for seed in range(3)]
    first, second = (part.splitlines() for part in policy.tables(looks).split('\n\n'))
    assert first[2].startswith('| shapes | layer1.0 | XL or L | ') and '+1.00 (+1.00 to +1.00), 0 -, 3 +' in first[2]
    assert len(first) == 2 + 6 and len(second) == 2 + 12
    left, right = policy.draw(looks).axes
    assert len(left.containers) == 6 and len(right.containers) == 6
