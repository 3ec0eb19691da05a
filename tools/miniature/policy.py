"""What the trained Elastic nets make of their scales: the policy over the object's size, and what each branch is for.

A share is that of tools/policies.py: how much of what a block sums comes from its full resolution. A branch is removed
by setting what it contributes to its mean over the test pictures, at every channel and place: what is then missing is
what it told of one picture apart from the others.
"""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.elastic import TwoBranchBottleneck
from tools import markdown
from tools.miniature.data import SIDE, THIRDS, ScaledObjects
from tools.miniature.report import interval, paired
from tools.miniature.study import LAST, ScaleError, Study, build, loss_of_label
from tools.policies import measure
from utils import checkpoint
from utils.checkpoint import CheckpointMeta, load_for_evaluation
from utils.device import Compute
from utils.files import write_files
from utils.loader import DeviceLoader

Look = dict[str, Any]  # what `look` finds of a net, and of which data set and seed it is
BINS = 8  # of as many pictures each, in the order of their objects' sizes
BRANCHES = {'full': 'conv3', 'half': 'conv3_d'}  # the convolution whose output a branch contributes, upsampled or not


def noted(study: Study, data: str, seed: int) -> Path:
    """What a look at a trained Elastic net found, once that is done."""
    return study.folder(data, 'elastic', seed) / 'policy.json'


def look_at(study: Study, data: str, seed: int) -> None:
    """Look at the trained Elastic net of a run that is done, and note what is found."""
    torch.set_num_threads(1)
    _, test = study.open_data(data)
    compute, net = Compute(study.device, all_gpus=False), build('elastic', len(test.classes))
    trained = checkpoint.read(study.folder(data, 'elastic', seed) / LAST)
    load_for_evaluation(net, trained, CheckpointMeta('miniature', 'elastic', test.classes))
    found = look(compute.place(net).eval(), test, study.test_loader(test, compute))
    found |= {'data': data, 'seed': seed}
    write_files({noted(study, data, seed): json.dumps(found).encode() + b'\n'})


def look(net: nn.Module, test: ScaledObjects, loader: DeviceLoader) -> Look:
    """Numbers of one net in evaluation mode, whose loader gives `test` in its order.

    `sizes`: the median of each of BINS bins of the object's size. `blocks`: of each elastic block its name and sizes of
    maps, Spearman's `correlation` of its share with the object's size, and its mean share, of all and in each bin.
    `error`: that of each third, in %. `rise`: by block, branch and third how much it rises when the branch is removed.
    """
    policies = measure(net, (images for images, _ in loader), SIDE)
    shares = policies.shares.double().numpy()
    bins = np.array_split(np.argsort(test.sizes), BINS)
    blocks = [
        {
            'name': block.name,
            'sizes': block.sizes,
            'correlation': float(stats.spearmanr(share, test.sizes).statistic),
            'mean_share': float(share.mean()),
            'share': [float(share[own].mean()) for own in bins],
        }
        for block, share in zip(policies.elastic, shares.T, strict=True)
    ]
    error, means, rise = errors_of(net, loader), mean_contributions(net, loader), {}
    for block in blocks:
        for branch, conv in BRANCHES.items():
            path = f'{block["name"]}.{conv}'
            with replaced(net.get_submodule(path), means[path]):
                without = errors_of(net, loader)
            rise.setdefault(block['name'], {})[branch] = {third: without[third] - error[third] for third in THIRDS}
    sizes = [float(np.median(test.sizes[own])) for own in bins]
    return {'sizes': sizes, 'blocks': blocks, 'error': error, 'rise': rise}


@torch.inference_mode()
def errors_of(net: nn.Module, loader: DeviceLoader) -> dict[str, float]:
    """The net's error in each third of the sizes, in %."""
    errors = ScaleError(loader.compute.device)
    for images, targets in loader:
        outputs = net(images)
        errors.update(loss_of_label(outputs, targets), outputs, targets)
    found = errors.compute()
    return {third: found[third] for third in THIRDS}


@torch.inference_mode()
def mean_contributions(net: nn.Module, loader: DeviceLoader) -> dict[str, Tensor]:
    """Of both branches of every elastic block the mean output over the pictures, C x H x W, by the module's path."""
    convs = {
        f'{name}.{conv}': block.get_submodule(conv)
        for name, block in net.named_modules()
        if isinstance(block, TwoBranchBottleneck) and block.elastic
        for conv in BRANCHES.values()
    }
    sums, count = dict.fromkeys(convs, 0.0), 0

    def add(path: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        sums[path] += output.sum(0, dtype=torch.float64)

    with ExitStack() as hooks:
        for path, conv in convs.items():
            hooks.enter_context(conv.register_forward_hook(partial(add, path)))
        for images, _ in loader:
            net(images)
            count += len(images)
    return {path: total / count for path, total in sums.items()}


def replaced(module: nn.Module, output: Tensor) -> RemovableHandle:
    """Context in which the module gives this output, C x H x W, for every picture."""
    return module.register_forward_hook(lambda module, inputs, own: output.to(own).expand_as(own))


def by_data(looks: list[Look]) -> dict[str, list[Look]]:
    """Those of each data set."""
    sets: dict[str, list[Look]] = {}
    for found in looks:
        sets.setdefault(found['data'], []).append(found)
    return sets


def tables(looks: list[Look]) -> str:
    """Two in markdown, over the nets of all seeds: shares and their correlation with size, and what removal costs."""
    shares, rises = [], []
    for data, nets in by_data(looks).items():
        for number, block in enumerate(nets[0]['blocks']):
            found = [net['blocks'][number] for net in nets]
            place = [data, block['name'], ' or '.join(block['sizes'])]
            share = 100 * mean(one['mean_share'] for one in found)
            shares.append([*place, f'{share:.1f}', paired([one['correlation'] for one in found])])
            for branch in BRANCHES:
                own = [[net['rise'][block['name']][branch][third] for net in nets] for third in THIRDS]
                rises.append([*place, branch, *map(paired, own)])
    header = ['data', 'block', 'sizes']
    first = markdown.table([*header, 'share of full resolution (%)', 'correlation with size'], 'lllrr', shares)
    second = [f'error, {third} (points)' for third in THIRDS]
    return f'{first}\n\n{markdown.table([*header, "without", *second], "llllrrr", rises)}'


def draw(looks: list[Look]) -> Figure:
    """A row per data set: each block's share over the size, and how much errors rise without a branch."""
    sets = by_data(looks)
    figure = Figure(figsize=(10, 3.6 * len(sets)), layout='constrained')
    for (left, right), (data, nets) in zip(figure.subplots(len(sets), 2, squeeze=False), sets.items(), strict=True):
        draw_shares(left, nets)
        draw_rises(right, nets)
        left.set(title=f'{data}: share of full resolution (%)', xlabel="object's size (pixels)", xscale='log')
        left.set_xticks([10, 20, 30, 40], ['10', '20', '30', '40'])
        left.minorticks_off()
        right.set(title=f'{data}: rise of the error without a branch (points)')
        for panel in left, right:
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7)
    return figure


def draw_shares(panel: Axes, nets: list[Look]) -> None:
    """A line per block, the mean over nets, with its interval."""
    sizes, blocks = np.array(nets[0]['sizes']), nets[0]['blocks']
    for number, block in enumerate(blocks):
        of_bins = list(zip(*(net['blocks'][number]['share'] for net in nets), strict=True))
        middles = np.array([100 * mean(values) for values in of_bins])
        reach = np.array([100 * interval(values)[1] for values in of_bins]) - middles
        places = sizes * 1.01 ** (number - (len(blocks) - 1) / 2)  # so that intervals stand side by side
        style = {'fmt': '.-', 'lw': 1, 'elinewidth': 0.8, 'capsize': 2, 'color': f'C{number}'}
        label = f'{block["name"]}, {" or ".join(block["sizes"])}'
        panel.errorbar(places, middles, reach, **style, label=label)


def draw_rises(panel: Axes, nets: list[Look]) -> None:
    """At each block a point per third and branch, the mean over nets, with its interval."""
    blocks = [block['name'] for block in nets[0]['blocks']]
    for side, (branch, marker) in enumerate(zip(BRANCHES, 'os', strict=True)):
        for number, third in enumerate(THIRDS):
            values = [[net['rise'][block][branch][third] for net in nets] for block in blocks]
            middles = [mean(own) for own in values]
            reach = [interval(own)[1] - middle for own, middle in zip(values, middles, strict=True)]
            places = np.arange(len(blocks)) + 0.12 * (number + 3.5 * side - 2.75)
            fill = None if side == 0 else 'white'
            label = f'no {branch}, {third}'
            panel.errorbar(
                places, middles, reach, fmt=marker, ms=4, capsize=2, color=f'C{number}', mfc=fill, label=label
            )
    panel.axhline(0, color='grey', lw=0.8)
    panel.set_xticks(range(len(blocks)), blocks, fontsize=8)
