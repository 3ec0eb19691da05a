"""Pictures of scale policies: rows of cells beside images, and classes by blocks."""

import math
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from torch.utils.data import Dataset

from data.image_folder import ImageFolder
from tools.policies import MAP_SIZES, Block, Policies

COLORS = dict(zip(MAP_SIZES, ('#2c2a6b', '#2a7f9e', '#6cc08b', '#f2d95c'), strict=True))
PALE = 0.35  # opacity of a block that has no choice
MOST_ROWS = 24  # of pictures; the numbers have all
MOST_CLASSES = 24
EXTREMES = 3  # pictures at either end


def draw_pictures(title: str, policies: Policies, pictures: Dataset) -> Figure:
    """A row per picture: as the net sees it, its cells, and below them the full resolution's shares."""
    count = min(len(pictures), MOST_ROWS)
    figure = Figure(figsize=(width_of(policies), 1.1 * count + 0.7), layout='constrained')
    some = f', the first {count} of {len(pictures)} pictures' * (count < len(pictures))
    figure.suptitle(title + some, fontsize=10)
    draw_rows(figure, policies, pictures, list(range(count)))
    return figure


def draw_folder(title: str, policies: Policies, pictures: ImageFolder, classes: dict[str, Any]) -> Figure:
    """Above, the classes by their mean share, of many those at either end; below, the pictures that use full
    resolution most and least. `classes` has `share` and `prefer_full` of each class."""
    order = policies.by_share()
    ends = dict.fromkeys([*order[-EXTREMES:][::-1], *order[:EXTREMES][::-1]])
    shown = sorted(classes, key=lambda name: -classes[name]['share'])
    if len(shown) > MOST_CLASSES:
        shown = shown[: MOST_CLASSES // 2] + shown[-(MOST_CLASSES // 2) :]
    heights = [0.24 * len(shown) + 1.3, 1.1 * len(ends) + 0.7]
    figure = Figure(figsize=(width_of(policies), sum(heights)), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    above.suptitle(f'{title}, {len(pictures):,} pictures', fontsize=10)
    some = f'; {len(shown)} of {len(classes)} classes' * (len(shown) < len(classes))
    draw_preferences(above.subplots(), policies.elastic, {name: classes[name] for name in shown}, some)
    below.suptitle('The pictures that use full resolution most (above) and least (below)', fontsize=10)
    draw_rows(below, policies, pictures, list(ends))
    return figure


def width_of(policies: Policies) -> float:
    """In inches: nets of up to 100 blocks stay readable on a screen."""
    return 2.5 + max(5.5, min(0.3 * len(policies.blocks), 12))


def draw_rows(figure: Figure | SubFigure, policies: Policies, pictures: Dataset, chosen: list[int]) -> None:
    """The chosen pictures with their policies, the stages below the last, and what the colors mean.

    Bars of all pictures have one scale: how far from a half the shares are at most, in steps of 0.05.
    """
    reach = max(0.05, math.ceil(20 * (policies.shares[chosen] - 0.5).abs().max().item()) / 20)
    panels = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=[1, width_of(policies) - 1.5])
    for (left, right), index in zip(panels, chosen, strict=True):
        left.imshow(pictures[index][0].permute(1, 2, 0).numpy())
        left.axis('off')
        draw_policy(right, policies, index, reach)
    mark_stages(panels[-1, 1], policies.blocks)
    key = [Patch(color=color, label=size) for size, color in COLORS.items()]
    key.append(Patch(color='grey', alpha=PALE, label='pale: no choice; bars: share of the full resolution'))
    figure.legend(handles=key, loc='outside lower center', ncols=len(key), fontsize=8, frameon=False)


def draw_policy(panel: Axes, policies: Policies, image: int, reach: float) -> None:
    """A cell per block in the color of its size, and under those of elastic blocks the full resolution's share."""
    sizes, shares = policies.sizes(image), iter((policies.shares[image] - 0.5).tolist())
    for place, (block, size) in enumerate(zip(policies.blocks, sizes, strict=True)):
        panel.bar(place, 0.5, 1, 1.1, color=COLORS[size], alpha=1 if block.elastic else PALE, ec='white', lw=1.5)
        if block.elastic:
            panel.bar(place, next(shares) / (2 * reach), 0.7, 0.5, color=COLORS[size])
        if len(sizes) <= 40:
            dark = block.elastic and size in MAP_SIZES[:2]
            panel.text(place, 1.35, size, ha='center', va='center', fontsize=7, color='white' if dark else 'black')
    panel.axhline(0.5, color='grey', lw=0.6)
    panel.set(xlim=(-0.6, len(sizes) - 0.4), ylim=(0, 1.65), xticks=[])
    panel.set_yticks([0, 0.5, 1], [f'{share:.0%}' for share in (0.5 - reach, 0.5, 0.5 + reach)], fontsize=7)
    panel.spines[:].set_visible(False)


def mark_stages(panel: Axes, blocks: list[Block]) -> list[int]:
    """Write the stages below the middle of their blocks; at which block each begins."""
    places = {block.stage: [] for block in blocks}
    for place, block in enumerate(blocks):
        places[block.stage].append(place)
    panel.set_xticks([mean(own) for own in places.values()], [f'stage {stage}' for stage in places], fontsize=8)
    panel.tick_params(axis='x', length=0)
    return [own[0] for own in places.values()]


def draw_preferences(panel: Axes, blocks: list[Block], classes: dict[str, Any], some: str) -> None:
    """How many of a class's pictures prefer full resolution at each elastic block, lines between the stages."""
    full = 100 * np.array([numbers['prefer_full'] for numbers in classes.values()])
    drawn = panel.imshow(full, cmap='RdBu', vmin=0, vmax=100, aspect='auto', interpolation='nearest')
    panel.figure.colorbar(drawn, ax=panel, pad=0.01).ax.tick_params(labelsize=7)
    panel.set_title(f'pictures that prefer full resolution (%), by block{some}; mean share beside the name', fontsize=9)
    names = [f'{name}  {numbers["share"]:.1%}' for name, numbers in classes.items()]
    panel.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)  # where $ is only a letter
    for first in mark_stages(panel, blocks)[1:]:
        panel.axvline(first - 0.5, color='black', lw=0.8)
    panel.tick_params(length=0)
